package guard

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"portcullis/verifier/approval"
	"portcullis/verifier/engine"
)

// Where the engine makes control groups itself, what a slice of systemd says would hold
// for nobody: no container is made then.
func TestSlicesAreSystemds(t *testing.T) {
	e := &listed{}
	g := before(t, e, func(*Options) {})
	g.unfit = map[string]string{}
	own := Own{Name: "portcullis-attestd", Purpose: "service/attestd", Slice: "system-contained-attestd.slice", Journal: "attestd"}
	if _, err := g.StartOwn(t.Context(), own); Reason(err) != ReasonSlices {
		t.Errorf("an engine with control groups of its own: %v", err)
	}
	g.info.Systemd = true
	if _, err := g.StartOwn(t.Context(), own); Reason(err) != approval.ReasonUnapproved {
		t.Errorf("with systemd's: %v", err)
	}
	own.Slice, g.info.Systemd = "", false
	if _, err := g.StartOwn(t.Context(), own); Reason(err) != approval.ReasonUnapproved {
		t.Errorf("without a slice: %v", err)
	}
}

// inspected is an engine that answers every question about a container with one answer.
type inspected struct{ answer map[string]any }

func (i inspected) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Api-Version", "1.41")
	w.Header().Set("Content-Type", "application/json")
	if r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, "/json") {
		json.NewEncoder(w).Encode(i.answer)
	}
}

// A container that lies in another slice than it was made for, or whose output goes
// elsewhere, is not the one that was asked for.
func TestSliceAndJournalAreReadBack(t *testing.T) {
	pids := int64(16)
	host := map[string]any{"NetworkMode": "host", "ReadonlyRootfs": true, "CapDrop": []string{"ALL"}, "SecurityOpt": []string{"no-new-privileges"},
		"IpcMode": "private", "CgroupnsMode": "private", "MaskedPaths": []string{"/proc/kcore"}, "ReadonlyPaths": []string{"/proc/sys"},
		"Memory": 1 << 20, "MemorySwap": 1 << 20, "PidsLimit": pids, "NanoCpus": 1e9, "Ulimits": []any{map[string]any{"Name": "core"}}}
	client := client(t, inspected{map[string]any{"Id": "x", "Image": "i", "HostConfig": host,
		"Config": map[string]any{"User": "1:1", "Entrypoint": []string{"/p"}}}})
	s := engine.Spec{Image: engine.Image{ID: "i", Entrypoint: []string{"/p"}}, Slice: "a.slice", Journal: "attestd",
		Profile: approval.Profile{User: "1:1", Network: approval.NetworkHost, Limits: approval.Limits{MemoryBytes: 1 << 20, Pids: pids, MilliCPU: 1000}}}
	journal := map[string]any{"Type": "journald", "Config": map[string]string{"tag": "attestd"}}
	for _, c := range []struct {
		parent string
		log    map[string]any
		want   string
	}{
		{"a.slice", journal, ""},
		{"", journal, "control group "},
		{"b.slice", journal, "control group b.slice"},
		{"a.slice", map[string]any{"Type": "local", "Config": map[string]string{"max-size": "1m", "max-file": "2"}}, "log driver local"},
		{"a.slice", map[string]any{"Type": "journald", "Config": map[string]string{"tag": "pxed"}}, "log driver journald"},
	} {
		host["CgroupParent"], host["LogConfig"] = c.parent, c.log
		if d, err := client.Differs(t.Context(), "x", s); err != nil || d != c.want {
			t.Errorf("%q %v: %q %v, want %q", c.parent, c.log["Type"], d, err, c.want)
		}
	}
}
