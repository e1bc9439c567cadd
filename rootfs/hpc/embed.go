// Package hpc holds the project's own recipes of the PC's image and the files
// they name. It is data; images/hpc reads it.
package hpc

import "embed"

// FS has recipe.yaml, what extends it for each profile, files/ and kernel/.
//
//go:embed *.yaml files kernel
var FS embed.FS
