// Package deb brings Debian packages onto this machine as files: it asks apt,
// with a configuration of its own, which packages a list needs, downloads them
// into a store named by digest, and reads what is inside. No maintainer script
// is ever run and the machine's own package state is neither read nor changed.
//
// It may be called by the image builders. It runs apt-get and dpkg-deb.
package deb
