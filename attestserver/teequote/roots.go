package teequote

import "github.com/google/go-sev-guest/verify/trust"

// sevRoots are those that AMD has published, built into go-sev-guest; nil means
// them. Tests put a root of their own here.
var sevRoots map[string][]*trust.AMDRootCerts
