package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"connectrpc.com/connect"

	v1 "portcullis/api/portcullis/v1"
	"portcullis/api/portcullis/v1/portcullisv1connect"
	"portcullis/internal/rpc"
)

type verifierReport struct {
	Fit        bool              `json:"fit"`
	Unfit      map[string]string `json:"unfit"`
	Engine     string            `json:"engine"`
	API        string            `json:"api"`
	Userns     bool              `json:"userns"`
	SelfTest   *time.Time        `json:"self_test"`
	Containers []string          `json:"containers"`
	Images     []string          `json:"images"`
	Refused    map[string]uint64 `json:"refused"`
}

// newVerifier asks verifierd; nil without an error where there is none.
func newVerifier(ctx context.Context, dir string) (*verifierReport, error) {
	socket := filepath.Join(dir, rpc.VerifierSocket)
	if _, err := os.Stat(socket); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	answer, err := portcullisv1connect.NewVerifierClient(rpc.Client(socket), rpc.BaseURL).
		GetVerifierStatus(ctx, connect.NewRequest(&v1.GetVerifierStatusRequest{}))
	if err != nil {
		return nil, err
	}
	m := answer.Msg
	r := &verifierReport{Fit: m.Fit, Unfit: m.Unfit, Engine: m.Engine, API: m.Api, Userns: m.Userns, Containers: []string{}, Images: m.Images, Refused: m.Refused}
	if m.SelfTestMs > 0 {
		at := time.UnixMilli(m.SelfTestMs)
		r.SelfTest = &at
	}
	for _, c := range m.Containers {
		state := "not started"
		if c.Approval != "" {
			state = fmt.Sprintf("started by entry %d of the log", c.Entry)
		}
		r.Containers = append(r.Containers, fmt.Sprintf("%.12s %s image=%.19s purpose=%s %s", c.Id, c.Name, c.Image, c.Purpose, state))
	}
	return r, nil
}

func printVerifier(w io.Writer, v *verifierReport, paint func(string, string) string) {
	if v == nil {
		return
	}
	total := uint64(0)
	for _, n := range v.Refused {
		total += n
	}
	state := paint(green, "fit")
	if !v.Fit {
		state = paint(red, "unfit: nothing is started")
	}
	fmt.Fprintf(w, "docker   %s   engine %s, %d images, %d containers, %d requests refused\n", state, v.Engine, len(v.Images), len(v.Containers), total)
	for _, what := range slices.Sorted(maps.Keys(v.Unfit)) {
		fmt.Fprintf(w, "unfit    %s: %s\n", what, v.Unfit[what])
	}
	for _, s := range v.Containers {
		fmt.Fprintf(w, "run      %s\n", s)
	}
}
