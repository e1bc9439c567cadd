// Command attest measures cmd/attestd with many PCs at once, each with a key and a TLS
// channel of its own, the PCs in a process of their own: CPU of attestd for each judged
// challenge, how late challenges are asked, memory; then what verifying one TPM quote
// costs, beside google/go-attestation. See README.md.
package main

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "attest:", err)
		os.Exit(1)
	}
}

// elevenOps are the ops whose answer is a state. The others hash memory or the disk: what
// they cost is the hash over as many bytes as the operator has.
const elevenOps = "boot,procs,hw,modules,net,trace,container,ima,files,tpm,tsm"

func run(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("attest", flag.ExitOnError)
	sizes := flags.String("pcs", "50,200,400,2000", "how many PCs, one run each; \"\" for none")
	mean := flags.Duration("mean", 2*time.Second, "mean gap between the challenges of a PC")
	last := flags.Duration("for", 20*time.Second, "measure for, after every PC is trusted")
	ops := flags.String("ops", elevenOps, "ops that are asked; all: cmd/attestd as it is; "+quoteOps+": a quote each time, each PC with a chip in software")
	log := flags.String("log", "", "with -ops "+quoteOps+": the boot log of the PCs, as Linux shows it in binary_bios_measurements, of a unified kernel image that firmware started; \"\": one that was written for tests")
	think := flags.Duration("think", 0, "with -ops "+quoteOps+": a chip takes so long for an answer on average, from half of it to one and a half; 0: as long as software does")
	profile := flags.String("profile", "", "write attestd's profiles to this path with .cpu, .heap, .allocs, .goroutine behind it, and the PCs' with -pcs.cpu")
	state := flags.String("state", "/dev/shm", "directory for what attestd writes: what a PC's first boot writes is not measured")
	quotes := flags.Int("quotes", 2000, "verify so many TPM quotes, by ours and by go-attestation; 0 for none")
	flags.Parse(args)
	if (*log != "" || *think != 0) && *ops != quoteOps {
		return fmt.Errorf("-log and -think are for -ops %s: the PCs have no chip otherwise", quoteOps)
	}
	dir, err := os.MkdirTemp("", "bench-attest")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if *sizes != "" {
		if err := rack(ctx, dir, *sizes, *ops, *state, setup{Mean: *mean, For: *last, Log: *log, Think: *think, Profile: *profile}); err != nil {
			return cmp.Or(ctx.Err(), err)
		}
	}
	if *quotes > 0 {
		return cmp.Or(ctx.Err(), quote(ctx, dir, *quotes))
	}
	return nil
}

// quoteOps asks for a quote and nothing else, as Keylime's verifier does.
const quoteOps = "tpm"

func rack(ctx context.Context, dir, sizes, ops, state string, s setup) error {
	p, err := build(ctx, dir, ops, s.Profile != "")
	if err != nil {
		return err
	}
	s.Chips = ops == quoteOps
	fmt.Printf("%6s %10s %8s %8s %10s %10s %10s %10s %9s %9s %6s %8s %8s\n", "PCs", "asked for", "judged", "a second", "CPU ms", "of a core", "late p50", "late p99", "RSS MiB", "findings", "load", "PCs' CPU", "switches")
	for _, text := range strings.Split(sizes, ",") {
		if s.PCs, err = strconv.Atoi(strings.TrimSpace(text)); err != nil || s.PCs < 1 {
			return fmt.Errorf("-pcs: %q is not a number of PCs", text)
		}
		m, err := measure(ctx, p, state, s)
		if err != nil {
			return fmt.Errorf("%d PCs: %w", s.PCs, err)
		}
		m.print()
	}
	return nil
}

func (m *measured) print() {
	seconds := m.took.Seconds()
	each := func(d time.Duration) float64 { return 1000 * d.Seconds() / float64(m.judged) }
	fmt.Printf("%6d %8.0f/s %8d %8.1f %10.3f %8.1f %% %7.1f ms %7.1f ms %9.1f %9d %6s %5.2f ms %8.1f\n", m.PCs, float64(m.PCs)/m.Mean.Seconds(), m.judged,
		float64(m.judged)/seconds, each(m.cpu), 100*m.cpu.Seconds()/seconds,
		1000*m.late(0.5), 1000*m.late(0.99), float64(m.rss)/(1<<20), m.findings, m.load, each(m.theirs), float64(m.switches)/float64(m.judged))
}
