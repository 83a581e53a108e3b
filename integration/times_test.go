package integration

import "testing"

// TestVerifyShortTimes bakes times after 2038 into filesystems that cannot hold them: verify then expects what the
// writer and the kernel make of them.
func TestVerifyShortTimes(t *testing.T) {
	requires(t, "root", "mke2fs", "mkfs.xfs", "sfdisk")
	images := testImages(t)
	small := rootPart(t, nil, "-I", "128", "-N", "20000")
	small.size = 256 * mib
	old := xfsPart(t, nil, "-m", "bigtime=0,inobtcount=0")
	old.size = xfsMinimum
	for name, p := range map[string]part{"ext4 inodes of 128 bytes": small, "XFS without bigtime": old} {
		t.Run(name, func(t *testing.T) {
			dir := tempDir(t)
			makeDisk(t, dir+"/base.raw", "gpt", p)
			baked(t, "--base", dir+"/base.raw", "--image", images["exact"].oci(), "--image", images["quirks"].oci(), "--output", dir+"/out.raw")
			if o := nodebake(t, "verify", dir+"/out.raw"); o.code != 0 {
				t.Errorf("%s", o)
			}
		})
	}
}
