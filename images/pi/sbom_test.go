package pi

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

func sbomTest(t *testing.T, dir string, r *Result) {
	data, err := os.ReadFile(filepath.Join(dir, SBOMFile))
	must(t, err)
	var d spdxDocument
	must(t, json.Unmarshal(data, &d))
	ids := map[string]bool{}
	names := map[string]spdxPackage{}
	debs := 0
	for _, p := range d.Packages {
		if ids[p.ID] || !regexp.MustCompile(`^SPDXRef-[A-Za-z0-9.-]+$`).MatchString(p.ID) {
			t.Errorf("identifier %q is there twice or not allowed", p.ID)
		}
		ids[p.ID], names[p.Name] = true, p
		if strings.HasPrefix(p.ID, "SPDXRef-deb-") {
			debs++
			if len(p.Checksums) != 1 || len(p.Checksums[0].Value) != 64 || len(p.References) != 1 || !strings.HasPrefix(p.References[0].Locator, "pkg:deb/debian/") {
				t.Errorf("%+v", p)
			}
		}
	}
	if debs != r.Packages {
		t.Errorf("%d packages listed, the image is made of %d", debs, r.Packages)
	}
	for _, n := range []string{"systemd", "nftables", "docker.io", "libc6", "gatewayd", "attestd", "pxed", "pi-init", "github.com/google/go-tpm"} {
		if names[n].Version == "" {
			t.Errorf("%s is not listed", n)
		}
	}
	for _, rel := range d.Relationships {
		if rel.Type == "CONTAINS" && (!ids[rel.From] || !ids[rel.To]) {
			t.Errorf("%+v names something that is not there", rel)
		}
	}
	if _, err := time.Parse(time.RFC3339, d.Creation.Created); err != nil {
		t.Error(err)
	}
}
