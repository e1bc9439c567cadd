// Command piboot measures the Pi's first minute: from the start of the initramfs
// to the mounted root, and the size of the initramfs, ours beside Debian's
// initramfs-tools with systemd-cryptsetup, in the same emulated machine with the same
// kernel, the same chip, the same root file system and the same LUKS parameters.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"portcullis/bench/internal/bench"
	"portcullis/lab"
	"portcullis/lab/pi"
)

// bootLimit bounds one boot of either kind.
const bootLimit = 5 * time.Minute

func main() {
	bench.Main(bench.Spec{Name: "piboot", Runs: 3, Usage: "boots of each kind", Run: run})
}

// side is what was measured of one kind; seconds are medians.
type side struct {
	Each    []times `json:"each"`
	Mounted float64 `json:"mounted_seconds"`        // start of the initramfs's first program to the mounted root
	Kernel  float64 `json:"kernel_to_root_seconds"` // start of the kernel to the mounted root
	Bytes   int     `json:"initramfs_bytes"`        // with the guest's kernel
	PiBytes int     `json:"pi4_initramfs_bytes"`    // with the Pi 4's
	// Ours goes on with the data volume, the settings and the policy of the chip.
	HandOver float64 `json:"switch_root_seconds,omitempty"`
}

// sum fills in the medians.
func (s *side) sum() {
	var mounted, kernel, handOver []float64
	for _, t := range s.Each {
		mounted, kernel, handOver = append(mounted, t.Mounted), append(kernel, t.Kernel), append(handOver, t.HandOver)
	}
	s.Mounted, s.Kernel, s.HandOver = bench.Median(mounted), bench.Median(kernel), bench.Median(handOver)
}

// report is what is printed.
type report struct {
	Runs      int     `json:"runs"`
	Kernel    string  `json:"kernel"`
	Ours      side    `json:"portcullis"`
	Peer      side    `json:"initramfs_tools"`
	Faster    float64 `json:"times_faster"`
	Sooner    float64 `json:"kernel_to_root_times_faster"`
	Smaller   float64 `json:"times_smaller"`
	PiSmaller float64 `json:"pi4_times_smaller"`
	PeerBuild float64 `json:"peer_build_seconds"` // 0 when it was cached
}

func run(ctx context.Context, n int) (bench.Report, error) {
	repo, err := lab.FindRepository(".")
	if err != nil {
		return nil, err
	}
	say := func(what string) { fmt.Fprintln(os.Stderr, "piboot:", what) }
	b := &pi.Builder{Repository: repo, Say: say}
	img, err := b.Image(ctx, pi.Variant{})
	if err != nil {
		return nil, err
	}
	seed, err := b.Seed(ctx)
	if err != nil {
		return nil, err
	}
	card, err := b.Provisioned(ctx, img, pi.Direct, seed)
	if err != nil {
		return nil, err
	}
	o, err := newOurs(card)
	if err != nil {
		return nil, err
	}
	p, err := newPeer(ctx, repo, card, say)
	if err != nil {
		return nil, fmt.Errorf("the peer: %w", err)
	}
	defer p.remove()
	r := report{Runs: n, Kernel: p.release, PeerBuild: p.built.Seconds()}
	r.Ours.Bytes, r.Peer.Bytes, r.Peer.PiBytes = o.bytes, p.bytes, p.piBytes
	if r.Ours.PiBytes, err = pi4Bytes(ctx, b); err != nil {
		return nil, err
	}
	// In turns, so that what else the machine does hits both.
	for i := range n {
		t, err := o.boot(ctx)
		if err != nil {
			return nil, fmt.Errorf("ours: %w", err)
		}
		r.Ours.Each = append(r.Ours.Each, t)
		their, err := p.boot(ctx)
		if err != nil {
			return nil, fmt.Errorf("the peer: %w", err)
		}
		r.Peer.Each = append(r.Peer.Each, their)
		say(fmt.Sprintf("boots %d of %d: %.2f s, the peer %.2f s", i+1, n, t.Mounted, their.Mounted))
	}
	r.Ours.sum()
	r.Peer.sum()
	r.Faster, r.Sooner = r.Peer.Mounted/r.Ours.Mounted, r.Peer.Kernel/r.Ours.Kernel
	r.Smaller, r.PiSmaller = float64(r.Peer.Bytes)/float64(r.Ours.Bytes), float64(r.Peer.PiBytes)/float64(r.Ours.PiBytes)
	return r, nil
}

// Print writes medians, sizes and ratios.
func (r report) Print(w io.Writer) {
	fmt.Fprintf(w, "kernel %s, QEMU aarch64 (emulated), 2 processors, 1 GiB, %d boots of each, medians\n\n", r.Kernel, r.Runs)
	fmt.Fprintf(w, "%-34s %12s %16s\n", "", "portcullis", "initramfs-tools")
	fmt.Fprintf(w, "%-34s %10.2f s %14.2f s   %.1f times faster (target 3)\n", "initramfs start → root mounted", r.Ours.Mounted, r.Peer.Mounted, r.Faster)
	fmt.Fprintf(w, "%-34s %10.2f s %14.2f s   %.1f times faster\n", "kernel start → root mounted", r.Ours.Kernel, r.Peer.Kernel, r.Sooner)
	fmt.Fprintf(w, "%-34s %10.2f s %16s\n", "initramfs start → switch_root", r.Ours.HandOver, "")
	fmt.Fprintf(w, "%-34s %9.2f MB %13.2f MB   %.1f times smaller (target 10)\n", "initramfs, Pi 4's kernel", mb(r.Ours.PiBytes), mb(r.Peer.PiBytes), r.PiSmaller)
	fmt.Fprintf(w, "%-34s %9.2f MB %13.2f MB   %.1f times smaller (target 10)\n", "initramfs, this guest's kernel", mb(r.Ours.Bytes), mb(r.Peer.Bytes), r.Smaller)
}

func mb(n int) float64 { return float64(n) / 1e6 }
