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
	"portcullis/verifier/declared"
	"portcullis/verifier/guard"
)

type verifierReport struct {
	Fit    bool              `json:"fit"`
	Unfit  map[string]string `json:"unfit"`
	Engine string            `json:"engine"`
	API    string            `json:"api"`
	Store  string            `json:"store"` // of images: overlay2 or containerd
	Userns bool              `json:"userns"`
	// Layers is how the files of the last started image are held: fs-verity, re-hashed, or "" before one was.
	Layers       string            `json:"layers"`
	LayersDetail string            `json:"layers_detail,omitempty"` // why they are not by fs-verity
	SelfTest     *time.Time        `json:"self_test"`
	Containers   []string          `json:"containers"`
	Images       []string          `json:"images"`
	Refused      map[string]uint64 `json:"refused"`
	// Services that run as containers; those that are not in it are units.
	Services []declared.Status `json:"services"`
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
	r := &verifierReport{Fit: m.Fit, Unfit: m.Unfit, Engine: m.Engine, API: m.Api, Store: store(m.ContainerdStore), Userns: m.Userns, Containers: []string{}, Images: m.Images, Refused: m.Refused,
		Layers: m.Layers, LayersDetail: m.LayersDetail}
	if m.SelfTestMs > 0 {
		at := time.UnixMilli(m.SelfTestMs)
		r.SelfTest = &at
	}
	if r.Services, err = newServices(ctx, socket); err != nil {
		return nil, err
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

// store names the engine's store of images.
func store(containerd bool) string {
	if containerd {
		return "containerd"
	}
	return "overlay2"
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
	root := "root of a container is the Pi's root, without capabilities"
	if v.Userns {
		root = "root of a container is nobody outside"
	}
	fmt.Fprintf(w, "docker   %s   engine %s, %d images, %d containers, %d requests refused\n", state, v.Engine, len(v.Images), len(v.Containers), total)
	if v.Engine != "" {
		fmt.Fprintf(w, "engine   API %s, store %s; %s\n", v.API, v.Store, root)
	}
	switch v.Layers {
	case guard.LayersSealed:
		fmt.Fprintf(w, "layers   %s: the kernel refuses writers and checks what is read\n", v.Layers)
	case guard.LayersHashed:
		fmt.Fprintf(w, "layers   %s before each start: %s\n", v.Layers, v.LayersDetail)
	}
	for _, what := range slices.Sorted(maps.Keys(v.Unfit)) {
		fmt.Fprintf(w, "unfit    %s: %s\n", what, v.Unfit[what])
	}
	printServices(w, v.Services, paint)
	for _, s := range v.Containers {
		fmt.Fprintf(w, "run      %s\n", s)
	}
}
