package main

import (
	"os"
	"strings"

	"github.com/spf13/cobra"
	"go.podman.io/image/v5/types"

	"github.com/nodebake/nodebake/imagebuild"
)

// sourceFlags are the flags that say how images are reached.
type sourceFlags struct {
	authFile, policy, cacheSize string
	certDirs, tags              []string
	tlsVerify, allPlatforms     bool
	o                           imagebuild.SourceOptions
}

func (s *sourceFlags) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&s.authFile, "authfile", "", "`FILE` with registries' credentials (default: $REGISTRY_AUTH_FILE, or as podman and docker have it)")
	f.StringArrayVar(&s.certDirs, "cert-dir", nil, "`[HOST=]DIR` with certificates and keys for that registry, or for all")
	f.BoolVar(&s.tlsVerify, "tls-verify", true, "check the registries' certificates")
	f.StringArrayVar(&s.o.Insecure, "insecure-registry", nil, "a registry, `HOST[:PORT]`, whose certificate is not checked; may be given more than once")
	f.StringVar(&s.policy, "policy", "", "`FILE` that says which signatures images need (default: the host's policy.json)")
	f.StringVar(&s.o.Cache, "cache", "", "a `DIR` that keeps layers of registries for the next bake; bakes may share it")
	f.StringVar(&s.cacheSize, "cache-size", "", "`SIZE` that the cache may have, such as 20G (default: no bound)")
	f.BoolVar(&s.o.Offline, "offline", false, "ask no registry: what is not in the --cache is an error")
	f.BoolVar(&s.o.Refresh, "refresh", false, "ask registries again what tags stand for, though the --cache knows")
	f.IntVar(&s.o.Parallel, "parallel", 0, "how many layers are fetched at a time (default 6)")
	f.BoolVar(&s.allPlatforms, "all-platforms", false, "")
	f.Lookup("all-platforms").Hidden = true
	f.StringArrayVar(&s.tags, "tag", nil, "`NEW=REF`: another name for the image that is named REF")
	f.StringVar(&s.o.Lock, "lock", "", "`FILE` of what each reference stands for; written, unless --locked")
	f.BoolVar(&s.o.Locked, "locked", false, "take the digests of the --lock and nothing else; without --image all of it")
}

func (s *sourceFlags) options() (imagebuild.SourceOptions, error) {
	o := s.o
	if s.allPlatforms {
		return o, usage("--all-platforms: a store serves one platform, that of the disk, and an engine would run the wrong one; bake one disk for each --platform")
	}
	o.System = &types.SystemContext{AuthFilePath: s.authFile, SignaturePolicyPath: s.policy}
	if s.authFile == "" {
		o.System.AuthFilePath = os.Getenv("REGISTRY_AUTH_FILE")
	}
	if !s.tlsVerify {
		o.System.DockerInsecureSkipTLSVerify = types.OptionalBoolTrue
	}
	o.CertDirs = map[string]string{}
	for _, c := range s.certDirs {
		host, dir, ok := strings.Cut(c, "=")
		switch {
		case !ok:
			o.System.DockerCertPath = c
		case host == "" || dir == "":
			return o, usage("--cert-dir %s: give DIR, or HOST=DIR", c)
		default:
			o.CertDirs[host] = dir
		}
	}
	var err error
	if o.CacheSize, err = imagebuild.ParseCacheSize(s.cacheSize); err != nil {
		return o, err
	}
	for _, t := range s.tags {
		tag, err := imagebuild.ParseTag(t)
		if err != nil {
			return o, err
		}
		o.Tags = append(o.Tags, tag)
	}
	return o, nil
}
