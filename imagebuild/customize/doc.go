// Package customize plans changes of the operating system on a disk, offline, and makes them: files copied,
// written and deleted, kernel arguments, the Ignition configuration and platform, the host's name, and what tells
// one machine from another.
//
// Plan checks all that can be checked before a byte is written; Plan.Apply then writes through the Writer that the
// caller gives for each osroot.System, so that new files get that system's SELinux labels. Whatever the order of the
// options, files are deleted first, then copied, then written; the rest comes last.
//
// # Paths
//
// Every path is the running system's. Symbolic links are followed inside the root as the running system would follow
// them; a file that is deleted is the link itself. Refused are places where nothing is kept (/run, /tmp), where the
// system mounts something that is not on the disk, and on ostree all that ostree owns: /usr, the deployment, and in
// /boot the kernels and loader entries. On ostree /etc belongs to one deployment: a change is made in every deployment
// that the disk can start. /var is shared by those of one OS and changed once.
//
// A copied folder's content becomes that of DST; a file goes by the name DST, or into it where DST ends in a slash.
// Copies belong to 0:0 unless an owner is given; modes are kept but for setuid and setgid, which would give root's
// rights to a file that was another user's: a mode that is given has them. A mode given for a folder is that of the
// files in it, and folders get it with x wherever r is. Links in a folder are kept as links and never followed, hard
// links become files of their own, extended attributes stay behind, sockets and devices are refused. A folder that is
// there keeps its attributes. A file that is written over keeps its owner, mode and extended attributes; one that is
// copied over does not. Times are Spec.Now, or the writer's: the same content makes the same disk.
//
// # Kernel arguments
//
// The three forms are rpm-ostree's, in its order: delete KEY, which must have one value, or KEY=VALUE; replace KEY=NEW
// where KEY has one value, else KEY=OLD=NEW; append. What is not there cannot be deleted or replaced. One form goes
// further than rpm-ostree's: OLD and NEW may hold "=", as in root=UUID=a=UUID=b, where one way alone to read it fits.
//
// The arguments are changed where the boot loader reads them: "options" of every entry in /boot/loader/entries, and
// where these say $kernelopts the variable of that name in grubenv (and the fallback for it in grub.cfg); the linux
// lines with root= of /boot/grub/grub.cfg or /boot/grub2/grub.cfg. An argument must be found in the entry that is
// started by default; others, such as a rescue entry's, may lack it. So that a new kernel or update-grub keeps them, they
// are changed in /etc/kernel/cmdline and in GRUB_CMDLINE_LINUX (and, to delete and replace, GRUB_CMDLINE_LINUX_DEFAULT) of
// /etc/default/grub and /etc/default/grub.d/*.cfg as well, but not on ostree, which keeps them in its entries. A unified kernel
// image, an entry on the EFI system partition and zipl's boot record cannot be changed; then there is an error.
//
// # Ignition
//
// An Ignition configuration counts at the first boot alone, and there are two ways in. Where /boot/ignition.firstboot is
// there, as on Fedora CoreOS, RHEL CoreOS and RHEL for Edge, the initial file system reads /boot/ignition/config.ign,
// which is where "coreos-installer install --ignition-file" puts it. Where the loader entry has ignition.firstboot
// itself, as Oracle's OCK does, nothing reads that file; there the configuration goes as /usr/lib/ignition/user.ign into
// an initial file system of its own, listed in the loader entry beside the OS's as "ostree admin deploy --overlay-initrd"
// lists one: /boot/ostree/initramfs-overlays/SHA256.img. The next deployment leaves it out. In both ways the
// configuration takes the place of what the platform would give. A disk with neither mark is refused: it has no
// Ignition, or has booted.
//
// # Identity
//
// ResetIdentity leaves a system as one that never ran, where it has these (systemd.io/BUILDING_IMAGES, virt-sysprep(1)):
//
//   - /etc/machine-id with an ID in it becomes empty, as machine-id(5) advises for images. A missing or "uninitialized" one
//     stays: then the next boot is a first boot (ConditionFirstBoot).
//   - /var/lib/dbus/machine-id, from which systemd would take the old ID, is removed; a link stays.
//   - /etc/ssh/ssh_host_*, /etc/udev/rules.d/70-persistent-net.rules.
//   - /var/lib/systemd/random-seed and credential.secret, /var/lib/urandom/random-seed, /var/lib/random-seed.
//   - /var/lib/cloud but for seed, as "cloud-init clean" does.
//   - DHCP leases and the secrets that addresses are made of: /var/lib/dhcp/*.leases, /var/lib/dhclient/*.leases and *.lease,
//     /var/lib/dhcpcd/*.lease, duid and secret, /var/lib/NetworkManager/*.lease, secret_key, timestamps and seen-bssids.
//
// It does not touch users, logs, the host's name, UUIDs of filesystems, iSCSI and NVMe names (not every system makes new
// ones), or random-seed on the EFI system partition.
package customize
