// Command piimage measures the build of the Pi's image beside others on the same
// package list, in turns on the same machine, each from nothing: the usual tools one
// after the other (mmdebstrap, mksquashfs, veritysetup, mkfs.vfat, sfdisk, zstd) and,
// where it is installed, mkosi.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"portcullis/bench/internal/bench"
	"portcullis/images/card"
	"portcullis/images/debroot"
	"portcullis/images/pi"
	"portcullis/images/recipe"
	rootfs "portcullis/rootfs/pi"
)

// runLimit bounds one build of either kind.
const runLimit = 20 * time.Minute

func main() {
	bench.Main(bench.Spec{Name: "piimage", Runs: 1, Usage: "builds of each kind", Run: run})
}

// report is what is printed; times are medians in seconds, sizes bytes.
type report struct {
	Runs      int     `json:"runs"`
	Ours      float64 `json:"ours_seconds"`       // from nothing, packages fetched
	OursWarm  float64 `json:"ours_warm_seconds"`  // packages there, nothing else
	OursAgain float64 `json:"ours_again_seconds"` // a change of our programs only
	Peer      float64 `json:"peer_seconds"`       // from nothing, packages fetched
	Ratio     float64 `json:"ratio"`              // Ours / Peer
	OurCard   int64   `json:"our_card_bytes"`
	PeerCard  int64   `json:"peer_card_bytes"`
	OurRoot   int64   `json:"our_root_bytes"`
	PeerRoot  int64   `json:"peer_root_bytes"`
	Bytes     float64 `json:"card_ratio"` // OurCard / PeerCard
	// mkosi, for this machine's own architecture; zero where it is not installed.
	Mkosi      float64 `json:"mkosi_seconds,omitempty"` // from nothing, packages fetched
	MkosiCard  int64   `json:"mkosi_disk_bytes,omitempty"`
	MkosiRatio float64 `json:"mkosi_ratio,omitempty"` // Ours / Mkosi
	without    string  // why there is no mkosi
}

func run(ctx context.Context, n int) (bench.Report, error) {
	if err := needPeer(); err != nil {
		return nil, err
	}
	rec, err := recipe.Load(recipe.Builtin{Name: pi.RecipeName, FS: rootfs.FS, Entry: "qemu.yaml"}, "")
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "portcullis-bench-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	keys, err := pi.GenerateKeys(filepath.Join(dir, "release"))
	if err != nil {
		return nil, err
	}
	r := report{Runs: n}
	hasMkosi, without := haveMkosi(ctx)
	r.without = without
	var ours, warm, again, theirs, mkosis []float64
	for i := range n {
		work := filepath.Join(dir, fmt.Sprint(i))
		o := pi.Options{
			Model: card.ModelQEMU, Profile: card.ProfileRelease, Keys: keys,
			CacheDir: filepath.Join(work, "cache"), OutDir: filepath.Join(work, "ours"), Progress: debroot.NewReporter(os.Stderr, false),
		}
		cold, err := timed(ctx, o, &ours)
		if err != nil {
			return nil, err
		}
		// The packages and what was asked of the archive stay; all that was made of them goes.
		for _, stage := range []string{"base", "kernel", "pi-kernel", "pi-root", "pi-image"} {
			if err := os.RemoveAll(filepath.Join(o.CacheDir, stage)); err != nil {
				return nil, err
			}
		}
		if _, err := timed(ctx, o, &warm); err != nil {
			return nil, err
		}
		if err := os.RemoveAll(filepath.Join(o.CacheDir, "pi-root")); err != nil {
			return nil, err
		}
		o.Sequence = 2
		if _, err := timed(ctx, o, &again); err != nil {
			return nil, err
		}
		p, err := peer(ctx, filepath.Join(work, "peer"), rec)
		if err != nil {
			return nil, err
		}
		theirs = append(theirs, p.seconds)
		r.OurCard, r.OurRoot, r.PeerCard, r.PeerRoot = cold.Sizes[pi.CardFile], cold.Sizes["root.img"], p.card, p.root
		if hasMkosi {
			m, err := mkosi(ctx, filepath.Join(work, "mkosi"), rec)
			if err != nil {
				return nil, err
			}
			mkosis = append(mkosis, m.seconds)
			r.MkosiCard = m.card
		}
		if err := os.RemoveAll(work); err != nil {
			return nil, err
		}
	}
	r.Ours, r.OursWarm, r.OursAgain, r.Peer = bench.Median(ours), bench.Median(warm), bench.Median(again), bench.Median(theirs)
	r.Ratio, r.Bytes = r.Ours/r.Peer, float64(r.OurCard)/float64(r.PeerCard)
	if hasMkosi {
		r.Mkosi = bench.Median(mkosis)
		r.MkosiRatio = r.Ours / r.Mkosi
	}
	return r, nil
}

// Print writes times, sizes and ratios.
func (r report) Print(w io.Writer) {
	fmt.Fprintf(w, "from nothing   ours %6.1f s   peer %6.1f s   ratio %.2f\n", r.Ours, r.Peer, r.Ratio)
	fmt.Fprintf(w, "packages there ours %6.1f s   our programs changed %.1f s\n", r.OursWarm, r.OursAgain)
	fmt.Fprintf(w, "card           ours %6.1f MB  peer %6.1f MB  ratio %.2f\n", float64(r.OurCard)/1e6, float64(r.PeerCard)/1e6, r.Bytes)
	fmt.Fprintf(w, "root image     ours %6.1f MB  peer %6.1f MB\n", float64(r.OurRoot)/1e6, float64(r.PeerRoot)/1e6)
	if r.without != "" {
		fmt.Fprintln(w, r.without)
		return
	}
	fmt.Fprintf(w, "mkosi          from nothing %6.1f s, ratio %.2f; its disk %6.1f MB\n", r.Mkosi, r.MkosiRatio, float64(r.MkosiCard)/1e6)
}

func timed(ctx context.Context, o pi.Options, times *[]float64) (*pi.Result, error) {
	ctx, cancel := context.WithTimeout(ctx, runLimit)
	defer cancel()
	begin := time.Now()
	r, err := pi.Build(ctx, o)
	*times = append(*times, time.Since(begin).Seconds())
	return r, err
}
