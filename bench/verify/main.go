// Command verify measures the Verification module beside Docker's engine without it,
// and beside skopeo: loading of images, calls, starts, memory. See README.md.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"portcullis/bench/internal/bench"
	"portcullis/lab/dockerd"
)

func main() {
	only, loads := -1, false
	bench.Main(bench.Spec{Name: "verify", Runs: 3, Usage: "loads of each kind, each of an image of its own; with -cold, starts",
		Flags: func(f *flag.FlagSet) {
			f.IntVar(&only, "cold", only, "only starts with nothing in memory, of an image of so many `MiB`")
			f.BoolVar(&loads, "loads", loads, "only loads through the guard and without it")
		},
		Run: func(ctx context.Context, n int) (bench.Report, error) {
			switch {
			case loads:
				return runLoads(ctx, n)
			case only >= 0:
				return runCold(ctx, n, only)
			}
			return run(ctx, n)
		}})
}

// mib is the size of the images that are loaded.
const mib = 300

// report is what was measured. Times are in seconds.
type report struct {
	MiB    int       `json:"mib"`
	Guard  []float64 `json:"guard_load"`  // docker load through the guard
	Docker []float64 `json:"docker_load"` // the same into an engine without it
	Skopeo []float64 `json:"skopeo_copy"` // skopeo copy with a policy file into that engine

	Calls map[string]calls `json:"calls"`
	Start starts           `json:"start"`
	Cold  map[int]starts   `json:"cold_start"` // by MiB of the image, with nothing in memory
	// RSSMiB of verifierd: after its start, and the most that it ever had.
	RSSMiB, PeakMiB float64
	Load            string `json:"load"` // of the machine, at the end
}

func (r report) Print(w io.Writer) {
	g, d, s := bench.Median(r.Guard), bench.Median(r.Docker), bench.Median(r.Skopeo)
	fmt.Fprintf(w, "an image of %d MiB, median of %d loads\n  through the guard  %6.2f s\n  docker load        %6.2f s   guard is %.2f x\n  skopeo copy        %6.2f s   guard is %.2f x\n",
		r.MiB, len(r.Guard), g, d, g/d, s, g/s)
	for _, name := range callNames {
		c := r.Calls[name]
		fmt.Fprintf(w, "%-18s p50 %6.2f ms, p99 %6.2f ms; without the guard %6.2f ms, %6.2f ms\n", name, c.GuardP50, c.GuardP99, c.DockerP50, c.DockerP99)
	}
	fmt.Fprintf(w, "create and start   p50 %6.0f ms; without the guard %6.0f ms: %+.0f %%\n", r.Start.Guard, r.Start.Docker, r.Start.more())
	for _, mib := range coldMiB {
		printCold(w, mib, r.Cold[mib])
	}
	fmt.Fprintf(w, "verifierd          %.1f MiB, at most %.1f MiB\nload of the machine %s\n", r.RSSMiB, r.PeakMiB, r.Load)
}

func run(ctx context.Context, n int) (bench.Report, error) {
	r := report{MiB: mib, Calls: map[string]calls{}, Cold: map[int]starts{}}
	err := engines(ctx, map[string]string{"skopeo": "skopeo", "docker": "docker.io"}, func(guarded *guarded, bare *dockerd.Engine) (err error) {
		if r.RSSMiB, _, err = guarded.memory(); err != nil {
			return err
		}
		for i := range n {
			if err := r.loads(ctx, guarded, bare, i, true); err != nil {
				return err
			}
		}
		if err := r.latencies(ctx, guarded, bare); err != nil {
			return err
		}
		for _, mib := range coldMiB {
			if r.Cold[mib], err = cold(ctx, guarded, bare, mib, coldStarts); err != nil {
				return err
			}
		}
		return r.ended(guarded)
	})
	return r, err
}

// ended notes what is known in the end only.
func (r *report) ended(g *guarded) (err error) {
	if _, r.PeakMiB, err = g.memory(); err == nil {
		r.Load, err = loadOfMachine()
	}
	return err
}

// loadReport is the row of loads.
type loadReport struct{ report }

func (r loadReport) Print(w io.Writer) {
	g, d := bench.Median(r.Guard), bench.Median(r.Docker)
	fmt.Fprintf(w, "an image of %d MiB, median of %d loads: through the guard %.2f s, docker load %.2f s: %.2f x\n  all, through the guard %.2f, without it %.2f\nverifierd at most %.1f MiB\nload of the machine %s\n",
		r.MiB, len(r.Guard), g, d, g/d, r.Guard, r.Docker, r.PeakMiB, r.Load)
}

func runLoads(ctx context.Context, n int) (bench.Report, error) {
	r := loadReport{report{MiB: mib}}
	err := engines(ctx, map[string]string{"docker": "docker.io"}, func(guarded *guarded, bare *dockerd.Engine) (err error) {
		for i := range n {
			if err := r.loads(ctx, guarded, bare, i, false); err != nil {
				return err
			}
		}
		return r.ended(guarded)
	})
	return r, err
}

// coldReport is one row of starts.
type coldReport struct {
	MiB  int    `json:"mib"`
	Cold starts `json:"cold_start"`
	Load string `json:"load"` // of the machine, at the end
}

func (r coldReport) Print(w io.Writer) {
	printCold(w, r.MiB, r.Cold)
	fmt.Fprintf(w, "  all, in ms, with the guard %.0f, without %.0f\nload of the machine %s\n", r.Cold.All[0], r.Cold.All[1], r.Load)
}

func printCold(w io.Writer, mib int, c starts) {
	fmt.Fprintf(w, "  %3d MiB, cold    p50 %6.0f ms; without the guard %6.0f ms: %+.0f %%\n", mib, c.Guard, c.Docker, c.more())
}

func runCold(ctx context.Context, n, mib int) (bench.Report, error) {
	r := coldReport{MiB: mib}
	err := engines(ctx, map[string]string{"docker": "docker.io"}, func(guarded *guarded, bare *dockerd.Engine) (err error) {
		r.Cold, err = cold(ctx, guarded, bare, mib, n)
		return err
	})
	if err == nil {
		r.Load, err = loadOfMachine()
	}
	return r, err
}

// engines starts both engines for f. The programs of these packages have to be there.
func engines(ctx context.Context, programs map[string]string, f func(*guarded, *dockerd.Engine) error) (err error) {
	for program, pkg := range programs {
		if _, err := exec.LookPath(program); err != nil {
			return fmt.Errorf("%s (Debian package %s) is missing: %w", program, pkg, err)
		}
	}
	guarded, err := startGuarded(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, guarded.close()) }()
	bare, err := dockerd.Prepare()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, bare.Close()) }()
	if err := bare.Start(ctx); err != nil {
		return err
	}
	return f(guarded, bare)
}

func loadOfMachine() (string, error) {
	load, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "", err
	}
	return strings.Join(strings.Fields(string(load))[:3], " "), nil
}

// loads loads one image by each way, skopeo's only if it is asked for. Who begins changes with each round.
func (r *report) loads(ctx context.Context, g *guarded, bare *dockerd.Engine, round int, skopeo bool) error {
	file := filepath.Join(g.dir, "image.tar")
	defer os.Remove(file)
	if err := makeImage(file, mib, uint64(round)+1); err != nil {
		return err
	}
	if err := g.approve(ctx, file); err != nil {
		return err
	}
	policy := filepath.Join(g.dir, "policy.json")
	if err := os.WriteFile(policy, []byte(`{"default":[{"type":"reject"}],"transports":{"docker-archive":{"":[{"type":"insecureAcceptAnything"}]}}}`), 0o600); err != nil {
		return err
	}
	engine := "unix://" + bare.Socket
	ways := []func() error{
		func() error {
			return timed(&r.Guard, func() error { return command(ctx, "docker", "-H", "unix://"+g.socket, "load", "-q", "-i", file) })
		},
		func() error {
			if err := timed(&r.Docker, func() error { return command(ctx, "docker", "-H", engine, "load", "-q", "-i", file) }); err != nil {
				return err
			}
			return command(ctx, "docker", "-H", engine, "image", "prune", "-af")
		},
		func() error {
			err := timed(&r.Skopeo, func() error {
				return command(ctx, "skopeo", "--policy", policy, "copy", "--dest-daemon-host", engine, "docker-archive:"+file, "docker-daemon:bench:1")
			})
			if err != nil {
				return err
			}
			return command(ctx, "docker", "-H", engine, "image", "prune", "-af")
		},
	}
	if !skopeo {
		ways = ways[:2]
	}
	for i := range ways {
		if err := ways[(i+round)%len(ways)](); err != nil {
			return err
		}
	}
	return nil
}

// timed appends how long f took. What was written before is on the disk first.
func timed(to *[]float64, f func() error) error {
	if err := exec.Command("sync").Run(); err != nil {
		return err
	}
	began := time.Now()
	err := f()
	*to = append(*to, time.Since(began).Seconds())
	return err
}

func command(ctx context.Context, name string, args ...string) error {
	if out, err := exec.CommandContext(ctx, name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, out)
	}
	return nil
}
