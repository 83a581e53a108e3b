package ext4

// Links says how many names the file called name has; for a folder, what its inode says.
func (f *FS) Links(name string) (uint64, error) {
	clean, err := cleanName(name)
	if err != nil {
		return 0, pathErr("stat", name, err)
	}
	ino, err := f.lookup(clean)
	if err != nil {
		return 0, pathErr("stat", name, err)
	}
	raw, err := f.inode(ino)
	if err != nil {
		return 0, pathErr("stat", name, err)
	}
	return uint64(le.Uint16(raw[inLinks:])), nil
}
