package hpc

import (
	"encoding/hex"
	"fmt"
	"io"
	"time"

	"portcullis/images/debroot"
)

// Summary is a build's result for machines.
type Summary struct {
	Dir        string            `json:"dir"`
	Image      string            `json:"image"`
	Version    uint64            `json:"version"`
	Profile    string            `json:"profile"`
	LabChannel bool              `json:"lab_channel"`
	NotAfter   string            `json:"not_after"`
	RootHash   string            `json:"root_hash"`
	Digest     string            `json:"manifest_sha256"`
	Sizes      map[string]int64  `json:"bytes"`
	PCR        map[string]string `json:"pcr"`
	Packages   int               `json:"packages"`
	Cached     bool              `json:"cached"`
	Seconds    float64           `json:"seconds"`
}

// Summary returns the result for machines.
func (r *Result) Summary() Summary {
	m := r.Manifest
	s := Summary{
		Dir: r.Dir, Image: m.Image, Version: m.Version, Profile: m.Profile, LabChannel: m.LabChannel,
		NotAfter: m.NotAfter.Format(time.RFC3339), RootHash: m.Verity.RootHash, Digest: hex.EncodeToString(r.Digest[:]),
		Sizes: map[string]int64{}, PCR: m.PCR, Packages: len(m.Packages), Cached: r.Cached, Seconds: r.Took.Seconds(),
	}
	for _, a := range m.Artefacts {
		s.Sizes[a.Name] = a.Size
	}
	return s
}

// Print writes the result for people.
func (r *Result) Print(w io.Writer, colour bool) {
	m := r.Manifest
	fmt.Fprintf(w, "%s version %d in %s\n", m.Image, m.Version, r.Dir)
	for _, a := range m.Artefacts {
		fmt.Fprintf(w, "  %-10s %7.1f MB  sha256 %s\n", a.Name, float64(a.Size)/1e6, short(a.SHA256))
	}
	fmt.Fprintf(w, "  %-10s kernel %s, %d packages, valid until %s\n", "contents", m.UKI.KernelVersion, len(m.Packages), m.NotAfter.Format("2006-01-02"))
	fmt.Fprintf(w, "  %-10s %s\n", "root hash", m.Verity.RootHash)
	if m.LabChannel {
		fmt.Fprintln(w, debroot.Paint(colour, debroot.Red, "  LAB IMAGE  it has a root command channel: never boot a real PC with it"))
	}
}

// Print writes the report for people.
func (r *Report) Print(w io.Writer, colour bool) {
	o := debroot.Outcome{OK: r.OK, Checks: r.Checks, Reason: r.Reason, Lab: r.LabChannel}
	if r.OwnTrust {
		o.Own = "whole, by the trust file that came with it; --trust says who made it"
	}
	o.Print(w, colour)
}
