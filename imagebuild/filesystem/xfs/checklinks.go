package xfs

import iofs "io/fs"

// Links says how many names the file called name has; for a folder, what its inode says.
func (fs *FS) Links(name string) (uint64, error) {
	in, err := fs.resolve(name)
	if err != nil {
		return 0, &iofs.PathError{Op: "stat", Path: name, Err: err}
	}
	return uint64(in.nlink), nil
}
