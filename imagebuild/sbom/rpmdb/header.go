package rpmdb

import (
	"bytes"
	"encoding/binary"
	"strconv"
	"strings"
)

// A header as a database holds it, all numbers big-endian (lib/header.cc):
//
//	0  uint32    il, number of index entries
//	4  uint32    dl, length of the data in bytes
//	8  entry[il] 16 bytes each: tag, type, offset into the data, count
//	8+16*il      the data
const (
	headerIntro = 8
	headerEntry = 16
	// maxTags is RPM's own bound (HEADER_TAGS_MAX).
	maxTags = 0xffff
)

// Tags (include/rpm/rpmtag.h).
const (
	tagName            = 1000
	tagVersion         = 1001
	tagRelease         = 1002
	tagEpoch           = 1003
	tagVendor          = 1011
	tagLicense         = 1014
	tagURL             = 1020
	tagArch            = 1022
	tagSourceRPM       = 1044
	tagModularityLabel = 5096
)

// Types of a tag's data.
const (
	typeInt32       = 4
	typeString      = 6
	typeStringArray = 8
	typeI18NString  = 9
)

// maxString bounds a string that is kept.
const maxString = 64 << 10

func parseHeader(blob []byte) (Package, error) {
	var p Package
	if len(blob) < headerIntro {
		return p, corrupt("its header has %d bytes", len(blob))
	}
	il, dl := binary.BigEndian.Uint32(blob), binary.BigEndian.Uint32(blob[4:])
	if il == 0 || il > maxTags {
		return p, corrupt("its header has %d entries", il)
	}
	start := headerIntro + headerEntry*int64(il)
	if int64(dl) > int64(len(blob))-start {
		return p, corrupt("its header has %d entries and %d bytes of data, and only %d bytes", il, dl, len(blob))
	}
	data := blob[start : start+int64(dl)]
	strs := map[uint32]*string{tagName: &p.Name, tagVersion: &p.Version, tagRelease: &p.Release, tagVendor: &p.Vendor, tagLicense: &p.License,
		tagURL: &p.URL, tagArch: &p.Arch, tagSourceRPM: &p.SourceRPM, tagModularityLabel: &p.ModularityLabel}
	for i := range int64(il) {
		e := blob[headerIntro+headerEntry*i:]
		tag, kind, off, count := binary.BigEndian.Uint32(e), binary.BigEndian.Uint32(e[4:]), binary.BigEndian.Uint32(e[8:]), binary.BigEndian.Uint32(e[12:])
		// A later entry of the same tag counts: it was added to the signed ones.
		if to := strs[tag]; to != nil {
			s, err := headerString(data, tag, kind, off)
			if err != nil {
				return p, err
			}
			*to = s
		}
		if tag == tagEpoch {
			if kind != typeInt32 || count == 0 || int64(off)+4 > int64(len(data)) {
				return p, corrupt("its epoch is %d values of type %d at %d", count, kind, off)
			}
			p.Epoch = strconv.FormatUint(uint64(binary.BigEndian.Uint32(data[off:])), 10)
		}
	}
	if p.Name == "" || p.Version == "" {
		return p, corrupt("it has the name %q and the version %q", p.Name, p.Version)
	}
	return p, nil
}

func headerString(data []byte, tag, kind, off uint32) (string, error) {
	if kind != typeString && kind != typeStringArray && kind != typeI18NString {
		return "", corrupt("tag %d has the type %d and is no string", tag, kind)
	}
	if int64(off) >= int64(len(data)) {
		return "", corrupt("tag %d is at %d of %d bytes", tag, off, len(data))
	}
	s := data[off:]
	s = s[:min(len(s), maxString+1)]
	end := bytes.IndexByte(s, 0)
	if end < 0 {
		return "", corrupt("tag %d has no end within %d bytes", tag, len(s))
	}
	if string(s[:end]) == "(none)" {
		return "", nil
	}
	return strings.ToValidUTF8(string(s[:end]), "\uFFFD"), nil
}
