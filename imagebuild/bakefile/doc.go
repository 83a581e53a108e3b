// Package bakefile reads bake files: YAML that says what nodebake build is to make, for one disk or for several.
//
// A key is a flag of the command by another spelling, and means what the flag means. So the package knows which key
// stands for which flag and what its value looks like, and turns a file into settings of flags, each with its place in
// the file; what a value may be, only the code behind the flag knows. One table holds the keys: the parser and the JSON
// Schema are both made from it.
//
//	apiVersion: nodebake/v1
//	kind: Bake
//	base: debian.qcow2
//	images: [registry.k8s.io/pause:3.10]
//	disks:
//	- name: control
//	  output: control.qcow2
//	  imagesFrom: [control.txt]
//	- name: worker
//	  output: worker.qcow2
//
// What stands at the top holds for every disk; a file without disks is one disk. A disk's single value replaces the
// top's. Its lists are added behind the top's, and its mappings to the top's, where the disk's entry wins. Relative
// paths count from the file's folder.
//
// The YAML is that of version 1.2 with its core schema: true and false are the booleans, yes and no are strings.
// Anchors, aliases and tags are refused, and so are a second document and a key that is given twice. What is wrong is
// said with line and column, all of it at once.
package bakefile
