// Package recipe reads the declarative description of a PC image: packages,
// files, links, users, units, kernel modules and command line. A recipe may
// extend another one. It reads files only through the loader it is given and
// may be called by the image builders.
//
// A Recipe that came out of Load is valid: names and paths have been checked and
// every error names file and line.
package recipe
