package lvm

import "testing"

func TestSmoke(t *testing.T) {
	l := newLab(t, 100<<20, 64<<20)
	l.lvm(`pvcreate PV0 PV1
vgcreate -s 1m v-g PV0 PV1
lvcreate -an -Zn -Wn -n ro-ot -l 20 v-g
lvcreate -an -Zn -Wn -n two -l 5 v-g
lvextend -l +90 v-g/ro-ot`)
	g := l.group()
	for _, v := range g.Volumes {
		s, err := g.Segments(v.Name)
		t.Log(v, v.Paths(), s, err)
	}
	t.Log(g.src)
	t.Log(l.kernel("ls -l /dev/mapper; lvm vgchange -ay; lvm lvs -o all; dmsetup table; echo $PV0"))
}
