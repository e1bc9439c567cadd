// Package pi builds the Pi's image: the card with its boot partitions and seed,
// the update bundle of the same release, block map, software bill of materials.
// The portcullis program, the lab and tests call it.
//
// Equal inputs make equal bytes. Stages are kept in a cache under the digest of
// what went into them; the root file system depends on packages, recipe and our
// programs, not on keys or sequence. Nothing is mounted, no device is needed, no
// program of the other architecture is run.
package pi
