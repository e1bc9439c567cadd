// Package pi holds the project's own recipes of the Pi's image and the files
// they name. It is data; images/pi reads it.
package pi

import "embed"

// FS has recipe.yaml, what extends it for each model, and files/.
//
//go:embed *.yaml files
var FS embed.FS
