// Command piboot measures the Pi's first minute: from the start of the initramfs
// to the mounted root, and the size of the initramfs, ours beside Debian's
// initramfs-tools with cryptsetup-initramfs, in the same emulated machine with
// the same kernel, the same root file system and the same LUKS parameters.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"portcullis/lab"
	"portcullis/lab/pi"
)

// bootLimit bounds one boot of either kind.
const bootLimit = 5 * time.Minute

func main() {
	n := flag.Int("n", 3, "boots of each kind")
	asJSON := flag.Bool("json", false, "one JSON object")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := bench(ctx, *n, *asJSON)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "piboot:", err)
		os.Exit(1)
	}
}

// side is what was measured of one kind; seconds are medians.
type side struct {
	Mounted []float64 `json:"mounted_seconds_each"`
	Seconds float64   `json:"mounted_seconds"`     // start of the initramfs to the mounted root
	Bytes   int       `json:"initramfs_bytes"`     // with the guest's kernel
	PiBytes int       `json:"pi4_initramfs_bytes"` // with the Pi 4's
	// Ours goes on with the data volume, the settings and the policy of the chip.
	HandOver float64 `json:"switch_root_seconds,omitempty"`
}

// report is what is printed.
type report struct {
	Runs      int     `json:"runs"`
	Kernel    string  `json:"kernel"`
	Ours      side    `json:"portcullis"`
	Peer      side    `json:"initramfs_tools"`
	Faster    float64 `json:"times_faster"`
	Smaller   float64 `json:"times_smaller"`
	PiSmaller float64 `json:"pi4_times_smaller"`
	PeerBuild float64 `json:"peer_build_seconds"` // 0 when it was cached
}

func bench(ctx context.Context, n int, asJSON bool) error {
	if n < 1 {
		return fmt.Errorf("-n %d: at least 1", n)
	}
	repo, err := lab.FindRepository(".")
	if err != nil {
		return err
	}
	say := func(what string) { fmt.Fprintln(os.Stderr, "piboot:", what) }
	b := &pi.Builder{Repository: repo, Say: say}
	img, err := b.Image(ctx, pi.Variant{})
	if err != nil {
		return err
	}
	seed, err := b.Seed(ctx)
	if err != nil {
		return err
	}
	card, err := b.Provisioned(ctx, img, pi.Direct, seed)
	if err != nil {
		return err
	}
	o, err := newOurs(card)
	if err != nil {
		return err
	}
	defer o.remove()
	p, err := newPeer(ctx, repo, card, say)
	if err != nil {
		return fmt.Errorf("the peer: %w", err)
	}
	defer p.remove()
	r := report{Runs: n, Kernel: p.release, PeerBuild: p.built.Seconds()}
	r.Ours.Bytes, r.Peer.Bytes, r.Peer.PiBytes = o.bytes, p.bytes, p.piBytes
	if r.Ours.PiBytes, err = pi4Bytes(ctx, b); err != nil {
		return err
	}
	var handOver []float64
	// In turns, so that what else the machine does hits both.
	for i := range n {
		say(fmt.Sprintf("boots %d of %d", i+1, n))
		mounted, switched, err := o.boot(ctx)
		if err != nil {
			return fmt.Errorf("ours: %w", err)
		}
		r.Ours.Mounted, handOver = append(r.Ours.Mounted, mounted), append(handOver, switched)
		if mounted, err = p.boot(ctx); err != nil {
			return fmt.Errorf("the peer: %w", err)
		}
		r.Peer.Mounted = append(r.Peer.Mounted, mounted)
	}
	r.Ours.Seconds, r.Ours.HandOver, r.Peer.Seconds = median(r.Ours.Mounted), median(handOver), median(r.Peer.Mounted)
	r.Faster, r.Smaller = r.Peer.Seconds/r.Ours.Seconds, float64(r.Peer.Bytes)/float64(r.Ours.Bytes)
	r.PiSmaller = float64(r.Peer.PiBytes) / float64(r.Ours.PiBytes)
	if asJSON {
		return json.NewEncoder(os.Stdout).Encode(r)
	}
	fmt.Printf("kernel %s, QEMU aarch64 (emulated), 2 processors, 1 GiB, %d boots of each, medians\n\n", r.Kernel, n)
	fmt.Printf("%-34s %12s %16s\n", "", "portcullis", "initramfs-tools")
	fmt.Printf("%-34s %10.2f s %14.2f s   %.1f times faster (target 3)\n", "initramfs start → root mounted", r.Ours.Seconds, r.Peer.Seconds, r.Faster)
	fmt.Printf("%-34s %10.2f s %16s\n", "initramfs start → switch_root", r.Ours.HandOver, "")
	fmt.Printf("%-34s %9.1f MB %13.1f MB   %.1f times smaller (target 10)\n", "initramfs, Pi 4's kernel", mb(r.Ours.PiBytes), mb(r.Peer.PiBytes), r.PiSmaller)
	fmt.Printf("%-34s %9.1f MB %13.1f MB   %.1f times smaller\n", "initramfs, this guest's kernel", mb(r.Ours.Bytes), mb(r.Peer.Bytes), r.Smaller)
	return nil
}

func mb(n int) float64 { return float64(n) / 1e6 }

func median(v []float64) float64 {
	s := slices.Sorted(slices.Values(v))
	return s[len(s)/2]
}
