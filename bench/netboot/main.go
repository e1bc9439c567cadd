// Command netboot measures a boot: power-on to trusted through Portcullis, beside
// power-on to the first userspace line of the same UKI served by dnsmasq and
// nginx, with the same QEMU and firmware, in turns on the same machine.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"portcullis/bench/internal/bench"
	"portcullis/lab"
	"portcullis/lab/qemu"
)

// runLimit bounds one boot of either kind.
const runLimit = 4 * time.Minute

func main() {
	bench.Main(bench.Spec{Name: "netboot", Runs: 3, Usage: "boots of each kind, after one that is not counted", Run: run})
}

// report is what is printed.
type report struct {
	Runs    int                `json:"runs"`
	Ours    float64            `json:"trusted_seconds"`      // median, power-on to trusted
	Init    float64            `json:"trusted_init_seconds"` // median, power-on to the same first line, ours
	Peer    float64            `json:"peer_seconds"`         // median, power-on to the first userspace line
	Ratio   float64            `json:"ratio"`                // Ours / Peer
	Enrol   float64            `json:"first_boot_seconds"`   // the first boot of an image takes references
	Stages  map[string]float64 `json:"stage_seconds"`        // medians of the time since power-on
	Bytes   map[string]int64   `json:"bytes"`                // by artefact
	AllOurs []float64          `json:"trusted_seconds_each"`
	AllPeer []float64          `json:"peer_seconds_each"`
}

func run(ctx context.Context, n int) (bench.Report, error) {
	builder := &lab.Builder{}
	built, err := builder.Build(ctx, func(what string) { fmt.Fprintln(os.Stderr, "build:", what) })
	if err != nil {
		return nil, err
	}
	l, err := lab.Start(ctx, lab.Options{Name: "bench", Firmware: qemu.UEFIHTTP, Builder: builder})
	if err != nil {
		return nil, err
	}
	defer l.Close()
	dir, err := os.MkdirTemp("", "portcullis-bench-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	other, err := newPeer(dir, built.Image)
	if err != nil {
		return nil, err
	}
	defer other.Close()

	r := report{Runs: n, Stages: map[string]float64{}, Bytes: map[string]int64{}}
	stages := map[string][]float64{}
	var inits []float64
	for i := range n + 1 {
		fmt.Fprintf(os.Stderr, "boot %d of %d: dnsmasq + nginx\n", i, n)
		peer, err := other.boot(ctx)
		if err != nil {
			return nil, fmt.Errorf("dnsmasq + nginx: %w", err)
		}
		fmt.Fprintf(os.Stderr, "boot %d of %d: portcullis (dnsmasq + nginx took %.1f s)\n", i, n, peer)
		mark, began := l.Log.Mark(), time.Now()
		if _, err := l.Boot(ctx, runLimit); err != nil {
			return nil, err
		}
		ours := time.Since(began).Seconds()
		l.PowerCut()
		fmt.Fprintf(os.Stderr, "          trusted after %.1f s\n", ours)
		if i == 0 { // caches are cold, and references are taken
			r.Enrol = ours
			continue
		}
		r.AllPeer, r.AllOurs = append(r.AllPeer, peer), append(r.AllOurs, ours)
		for name, at := range stagesOf(l.Log.Since(mark), began, r.Bytes) {
			stages[name] = append(stages[name], at)
			if name == "stage init" {
				inits = append(inits, at)
			}
		}
	}
	r.Ours, r.Peer, r.Init = bench.Median(r.AllOurs), bench.Median(r.AllPeer), bench.Median(inits)
	r.Ratio = r.Ours / r.Peer
	for name, all := range stages {
		r.Stages[name] = bench.Median(all)
	}
	return r, nil
}

// stagesOf returns when each stage was reached, in seconds since power-on.
func stagesOf(events []lab.Event, began time.Time, bytes map[string]int64) map[string]float64 {
	out := map[string]float64{}
	put := func(name string, e lab.Event) {
		if _, known := out[name]; !known {
			out[name] = e.Time.Sub(began).Seconds()
		}
	}
	for _, e := range events {
		switch e.Name {
		case "session.opened", "session.served", "claim.accepted":
			put(e.Name, e)
		case "artefact.started", "artefact.served":
			put(e.Name+" "+e.Text("artefact"), e)
			if b := int64(e.Number("bytes")); b > 0 {
				bytes[e.Text("artefact")] = b
			}
		case "pc.stage":
			put("stage "+e.Text("stage"), e)
		case "verdict":
			if e.Text("state") == "trusted" { // others may be of the boot before
				put("verdict trusted", e)
			}
		}
	}
	return out
}

// Print writes the stages, the sizes and the medians.
func (r report) Print(w io.Writer) {
	names := make([]string, 0, len(r.Stages))
	for name := range r.Stages {
		names = append(names, name)
	}
	slices.SortFunc(names, func(a, b string) int {
		switch d := r.Stages[a] - r.Stages[b]; {
		case d < 0:
			return -1
		case d > 0:
			return 1
		}
		return 0
	})
	fmt.Fprintf(w, "%-34s %8s %8s\n", "stage (portcullis, medians)", "at s", "took s")
	last := 0.0
	for _, name := range names {
		fmt.Fprintf(w, "%-34s %8.2f %8.2f\n", name, r.Stages[name], r.Stages[name]-last)
		last = r.Stages[name]
	}
	fmt.Fprintln(w)
	var files []string
	for f := range r.Bytes {
		files = append(files, f)
	}
	slices.Sort(files)
	for _, f := range files {
		fmt.Fprintf(w, "%-34s %8.1f MB\n", f, float64(r.Bytes[f])/1e6)
	}
	fmt.Fprintf(w, "\npower-on → trusted, portcullis             median %6.2f s of %v\n", r.Ours, rounded(r.AllOurs))
	fmt.Fprintf(w, "power-on → first userspace line, portcullis median %6.2f s\n", r.Init)
	fmt.Fprintf(w, "power-on → first userspace line, dnsmasq+nginx median %3.2f s of %v\n", r.Peer, rounded(r.AllPeer))
	fmt.Fprintf(w, "first boot of the image (takes references) %6.2f s\n", r.Enrol)
	fmt.Fprintf(w, "ratio trusted / dnsmasq+nginx              %6.2f   (target 1.25)\n", r.Ratio)
}

func rounded(all []float64) []string {
	var out []string
	for _, x := range all {
		out = append(out, fmt.Sprintf("%.1f", x))
	}
	return out
}

func lookPath(names ...string) (string, error) {
	for _, n := range names {
		for _, dir := range append(filepath.SplitList(os.Getenv("PATH")), "/usr/sbin", "/sbin") {
			p := filepath.Join(dir, n)
			if st, err := os.Stat(p); err == nil && st.Mode()&0o111 != 0 {
				return p, nil
			}
		}
	}
	return "", fmt.Errorf("%v not found; install the packages dnsmasq and nginx-light", names)
}
