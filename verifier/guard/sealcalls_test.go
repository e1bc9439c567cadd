package guard

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"portcullis/lab/dockerd"
	"portcullis/verifier/verity"
)

// BenchmarkCallsBesideSealing tells how long calls take while the files of an image are sealed in the
// background, again and again, and while they are not. The kernel's part is played: what it reads
// and hashes is read and hashed here, on the same thread.
func BenchmarkCallsBesideSealing(b *testing.B) {
	r := newRig(b)
	kernel := &sealer{sums: map[uint64]verity.Sum{}}
	r.kernel.take(b, kernel)
	i, err := dockerd.Make("test/sealed:1", r.probe, strings.Repeat("portcullis\n", 256<<20/11))
	if err != nil {
		b.Fatal(err)
	}
	r.approvals.approve(b, i, "task", plain)
	if out, err := r.docker(b, strings.NewReader(string(i.Tar)), "load"); err != nil {
		b.Fatal(err, out)
	}
	files := func() int {
		kernel.mu.Lock()
		defer kernel.mu.Unlock()
		return len(kernel.sums)
	}
	waitFor(b, "a sealed image", time.Minute, func() bool { return files() == 2 })
	id, err := r.docker(b, nil, "create", "--network", "none", i.Config)
	if err != nil {
		b.Fatal(err, id)
	}
	id = strings.TrimSpace(id)
	b.Cleanup(func() { r.docker(b, nil, "rm", id) })
	caller := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", r.socket)
	}}}
	calls := map[string]string{"ping": "/_ping", "list": "/containers/json?all=1", "inspect": "/containers/" + id + "/json"}
	for _, sealing := range []bool{false, true} {
		b.Run(fmt.Sprintf("sealing=%v", sealing), func(b *testing.B) {
			ctx, cancel := context.WithCancel(b.Context())
			ended := make(chan int)
			go func() {
				rounds := 0
				for ; sealing && ctx.Err() == nil; time.Sleep(time.Millisecond) {
					if files() == 2 {
						rounds++
						kernel.mu.Lock()
						clear(kernel.sums)
						kernel.mu.Unlock()
						r.sealLater(i.Config)
					}
				}
				ended <- rounds
			}()
			took := map[string][]float64{}
			for b.Loop() {
				for range 1000 {
					for name, path := range calls {
						began := time.Now()
						a, err := caller.Get("http://docker/v1.41" + path)
						if err != nil {
							b.Fatal(err)
						}
						_, err = io.Copy(io.Discard, a.Body)
						a.Body.Close()
						if err != nil || a.StatusCode != http.StatusOK {
							b.Fatal(name, a.Status, err)
						}
						took[name] = append(took[name], float64(time.Since(began).Microseconds())/1000)
					}
				}
			}
			cancel()
			rounds := <-ended
			for name, all := range took {
				slices.Sort(all)
				b.ReportMetric(all[len(all)/2], name+"-p50-ms")
				b.ReportMetric(all[len(all)*99/100], name+"-p99-ms")
			}
			b.ReportMetric(float64(rounds), "images-sealed")
		})
	}
}
