package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"

	"portcullis/bench/internal/bench"
	"portcullis/lab/dockerd"
)

// starts are medians of creating and starting a container, ms.
type starts struct {
	Guard, Docker float64
	All           [2][]float64 // with and without the guard, in the order in which they were made
}

func (s starts) more() float64 { return 100 * (s.Guard/s.Docker - 1) }

// How often.
const (
	manyStarts = 15
	coldStarts = 21
)

// coldMiB are the sizes of the images whose containers are started with cold caches,
// beside the small program that runs.
var coldMiB = []int{0, 16, 64, 256}

// both makes an image of one small program and as many MiB beside it that do not
// compress, approves it, and loads it on both sides: its names there.
func both(ctx context.Context, g *guarded, bare *dockerd.Engine, mib int) (names [2]string, err error) {
	program, err := dockerd.Probe(ctx)
	if err != nil {
		return names, err
	}
	beside := make([]byte, mib<<20)
	rand.NewChaCha8([32]byte{byte(mib)}).Read(beside) // never fails
	i, err := dockerd.Make(fmt.Sprintf("bench/probe:%d", mib), program, string(beside)+"bench")
	if err != nil {
		return names, err
	}
	file := filepath.Join(g.dir, "probe.tar")
	defer os.Remove(file)
	if err := errors.Join(os.WriteFile(file, i.Tar, 0o600), g.approve(ctx, file)); err != nil {
		return names, err
	}
	for _, socket := range []string{g.socket, bare.Socket} {
		if err := command(ctx, "docker", "-H", "unix://"+socket, "load", "-q", "-i", file); err != nil {
			return names, err
		}
	}
	return [2]string{fmt.Sprintf("portcullis/approved:bench-%d-1", g.number), i.Name}, nil
}

// alternate starts containers with and without the guard in turns, after prepare.
func alternate(ctx context.Context, with, without caller, images [2]string, times int, prepare func() error) (starts, error) {
	var took [2][]float64
	for range times {
		for n, c := range []caller{with, without} {
			if prepare != nil {
				if err := prepare(); err != nil {
					return starts{}, err
				}
			}
			t, err := c.startOne(ctx, images[n])
			if err != nil {
				return starts{}, err
			}
			took[n] = append(took[n], t)
		}
	}
	return starts{bench.Median(took[0]), bench.Median(took[1]), took}, nil
}

// cold measures starts of which nothing is in memory: neither the image nor a program of
// the engine or of ours.
func cold(ctx context.Context, g *guarded, bare *dockerd.Engine, mib, times int) (starts, error) {
	images, err := both(ctx, g, bare, mib)
	if err != nil {
		return starts{}, err
	}
	return alternate(ctx, newCaller(g.socket), newCaller(bare.Socket), images, times, dropCaches)
}

// dropCaches writes everything to the disk and forgets it (proc_sys_vm(5)).
func dropCaches() error {
	if err := exec.Command("sync").Run(); err != nil {
		return err
	}
	return os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0o200)
}
