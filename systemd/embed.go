package systemd

import "embed"

// FS has the units and what they name; the builder of the Pi's image puts them in place.
//
//go:embed *.service *.mount *.slice *.nft *.rules *.sysusers *.tmpfiles
var FS embed.FS
