package services

import (
	"path/filepath"
	"runtime"
	"slices"

	"portcullis/internal/config"
	"portcullis/internal/rpc"
	"portcullis/verifier/declared"
	"portcullis/verifier/guard"
)

// sockets of the services below RunDir.
var sockets = map[string]string{"pxed": rpc.BootSocket, "attestd": rpc.AttestSocket}

// List are the services of these names as they are started here, in their order. With
// units they are in the slices of systemd that have what their units say of addresses,
// and their output is in its journal, under the names that their units have there.
func List(names []string, p declared.Paths, units bool) ([]Service, error) {
	var out []Service
	for _, name := range declared.Names {
		if !slices.Contains(names, name) {
			continue
		}
		profile, err := declared.Profile(name, p)
		if err != nil {
			return nil, err
		}
		// Engines refuse to give more than there is.
		profile.Limits.MilliCPU = min(profile.Limits.MilliCPU, int64(runtime.NumCPU())*1000)
		s := Service{Own: guard.Own{Name: declared.Container(name), Purpose: declared.Purpose(name), Profile: profile}, Socket: filepath.Join(p.RunDir, sockets[name])}
		if units {
			s.Slice, s.Journal = config.Slice(name), name
		}
		if name == "pxed" {
			s.RestExit = rpc.ExitAtRest
		}
		out = append(out, s)
	}
	return out, nil
}
