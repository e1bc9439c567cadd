package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"portcullis/lab/dockerd"
)

// calls are times of one kind of call, ms.
type calls struct {
	GuardP50, GuardP99, DockerP50, DockerP99 float64
}

var callNames = []string{"ping", "list", "inspect", "refused"}

// manyCalls is how often each is made.
const manyCalls = 1000

// caller speaks to one socket.
type caller struct{ http *http.Client }

func newCaller(socket string) caller {
	return caller{&http.Client{Timeout: time.Minute, Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	}}}}
}

// call makes one call and wants a status.
func (c caller) call(ctx context.Context, method, path, body string, want int) ([]byte, error) {
	r, err := http.NewRequestWithContext(ctx, method, "http://docker/v1.41"+path, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	a, err := c.http.Do(r)
	if err != nil {
		return nil, err
	}
	defer a.Body.Close()
	b, err := io.ReadAll(a.Body)
	if err == nil && a.StatusCode != want {
		err = fmt.Errorf("%s %s: %s %s", method, path, a.Status, b)
	}
	return b, err
}

// create makes a container that waits.
func (c caller) create(ctx context.Context, image string) (string, error) {
	b, err := c.call(ctx, "POST", "/containers/create", `{"Image":"`+image+`","Cmd":["wait"],"User":"1000:1000","HostConfig":{"NetworkMode":"none"}}`, http.StatusCreated)
	var made struct{ ID string }
	if err == nil {
		err = json.Unmarshal(b, &made)
	}
	return made.ID, err
}

// startOne creates and starts a container, and removes it: how long the first two took, ms.
func (c caller) startOne(ctx context.Context, image string) (float64, error) {
	began := time.Now()
	id, err := c.create(ctx, image)
	if err == nil {
		_, err = c.call(ctx, "POST", "/containers/"+id+"/start", "", http.StatusNoContent)
	}
	took := milliseconds(time.Since(began))
	if err != nil {
		return 0, err
	}
	_, err = c.call(ctx, "DELETE", "/containers/"+id+"?force=true", "", http.StatusNoContent)
	return took, err
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// latencies measures calls and starts, with an image of one small program.
func (r *report) latencies(ctx context.Context, g *guarded, bare *dockerd.Engine) error {
	with, without := newCaller(g.socket), newCaller(bare.Socket)
	images, err := both(ctx, g, bare, 0)
	if err != nil {
		return err
	}
	if r.Start, err = alternate(ctx, with, without, images, manyStarts, nil); err != nil {
		return err
	}
	var ids [2]string
	for n, c := range []caller{with, without} {
		var err error
		if ids[n], err = c.create(ctx, images[n]); err != nil {
			return err
		}
	}
	for _, name := range callNames {
		var all [2][]float64
		for range manyCalls {
			for n, c := range []caller{with, without} {
				began := time.Now()
				if err := c.one(ctx, name, ids[n], n == 0); err != nil {
					return err
				}
				all[n] = append(all[n], milliseconds(time.Since(began)))
			}
		}
		r.Calls[name] = calls{percentile(all[0], 50), percentile(all[0], 99), percentile(all[1], 50), percentile(all[1], 99)}
	}
	return nil
}

// one makes a call of a kind. What the guard refuses, with an entry in the log, the
// engine without it answers with an error of its own.
func (c caller) one(ctx context.Context, name, id string, guarded bool) error {
	var err error
	switch name {
	case "ping":
		_, err = c.call(ctx, "GET", "/_ping", "", http.StatusOK)
	case "list":
		_, err = c.call(ctx, "GET", "/containers/json?all=1", "", http.StatusOK)
	case "inspect":
		_, err = c.call(ctx, "GET", "/containers/"+id+"/json", "", http.StatusOK)
	case "refused":
		want := http.StatusForbidden
		if !guarded {
			want = http.StatusNotFound
		}
		_, err = c.call(ctx, "GET", "/containers/"+id+"/nothing", "", want)
	}
	return err
}

// percentile of what was measured, which it sorts.
func percentile(all []float64, p int) float64 {
	slices.Sort(all)
	return all[min(len(all)-1, len(all)*p/100)]
}
