// Command attest measures attestd with many PCs at once, each with a key and a TLS
// channel of its own, in a process of their own: CPU of attestd for each judged
// challenge, how late challenges are asked, memory. See README.md.
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

func run(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("attest", flag.ExitOnError)
	sizes := flags.String("pcs", "50,200,400,2000", "how many PCs, one run each")
	mean := flags.Duration("mean", 2*time.Second, "mean gap between the challenges of a PC")
	last := flags.Duration("for", 30*time.Second, "measure for, after every PC is trusted")
	ops := flags.String("ops", "", "ops that are asked, comma-separated; default: see README.md")
	profile := flags.String("profile", "", "write attestd's CPU profile of the last run to this file, and its memory's to FILE.mem")
	flags.Parse(args)
	program, done, err := build(ctx)
	if err != nil {
		return err
	}
	defer done()
	fmt.Printf("%6s %10s %8s %8s %10s %10s %10s %10s %9s %9s\n", "PCs", "asked for", "judged", "a second", "CPU ms", "of a core", "late p50", "late p99", "RSS MiB", "findings")
	for _, s := range strings.Split(*sizes, ",") {
		n, err := strconv.Atoi(strings.TrimSpace(s))
		if err != nil || n < 1 {
			return fmt.Errorf("-pcs: %q is not a number of PCs", s)
		}
		m, err := measure(ctx, program, setup{n, *mean, *last, *ops, *profile})
		if err != nil {
			return cmp.Or(ctx.Err(), fmt.Errorf("%d PCs: %w", n, err))
		}
		m.print()
	}
	return nil
}

func (m *measured) print() {
	seconds := m.took.Seconds()
	fmt.Printf("%6d %8.0f/s %8d %8.1f %10.3f %8.1f %% %7.1f ms %7.1f ms %9.1f %9d\n", m.PCs, float64(m.PCs)/m.Mean.Seconds(), m.judged,
		float64(m.judged)/seconds, 1000*m.cpu.Seconds()/float64(m.judged), 100*m.cpu.Seconds()/seconds,
		1000*m.late(0.5), 1000*m.late(0.99), float64(m.rss)/(1<<20), m.findings)
}
