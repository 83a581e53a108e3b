package xfs

// SameFile says whether two names are hard links to one file.
func (fs *FS) SameFile(a, b string) (bool, error) {
	x, err := fs.resolve(a)
	if err != nil {
		return false, pathErr("stat", a, err)
	}
	y, err := fs.resolve(b)
	if err != nil {
		return false, pathErr("stat", b, err)
	}
	return x.ino == y.ino, nil
}
