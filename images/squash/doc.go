// Package squash holds a root file system as a tree of values and writes it as
// a squashfs whose bytes depend on the tree only. It may be called by the image
// builders. It runs mksquashfs (squashfs-tools); nothing is mounted or extracted,
// and no privilege is needed.
package squash
