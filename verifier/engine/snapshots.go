package engine

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"strings"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// With the containerd image store the engine does not tell where the layers of a
// container lie; containerd does, in the same answer that the engine mounts when it
// starts the container: Mounts of containerd.services.snapshots.v1. The two messages
// of it are small enough to be read here, field by field.

const (
	mountsMethod = "/containerd.services.snapshots.v1.Snapshots/Mounts"
	spaceHeader  = "Containerd-Namespace"
	// maxMounts is the largest answer that is read; a container of 128 layers has about 20 KiB.
	maxMounts = 1 << 20
)

// snapshots is containerd, as the engine uses it.
type snapshots struct {
	socket      string
	space       string // containerd's namespace: "moby"
	snapshotter string // "overlayfs"
	mounts      string // directory in which the engine mounts the roots of containers, each under its ID
}

type mountsRequest struct{ snapshotter, key string }

// mountsResponse is what is to be mounted, in order.
type mountsResponse struct{ mounts []snapshotMount }

type snapshotMount struct {
	kind    string // of the file system
	options []string
}

// layers asks for the directories of the snapshot key. ErrNotFound where there is none.
func (s snapshots) layers(ctx context.Context, key string) (Layers, error) {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	t := &http.Transport{Protocols: &protocols, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", s.socket)
	}}
	defer t.CloseIdleConnections()
	c := connect.NewClient[mountsRequest, mountsResponse](&http.Client{Transport: t}, "http://containerd"+mountsMethod,
		connect.WithGRPC(), connect.WithCodec(snapshotCodec{}), connect.WithReadMaxBytes(maxMounts))
	q := connect.NewRequest(&mountsRequest{s.snapshotter, key})
	q.Header().Set(spaceHeader, s.space)
	a, err := c.CallUnary(ctx, q)
	if connect.CodeOf(err) == connect.CodeNotFound {
		return Layers{}, fmt.Errorf("%w: snapshot %.80s", ErrNotFound, key)
	}
	if err != nil {
		return Layers{}, fmt.Errorf("engine: containerd's snapshots: %w", err)
	}
	return a.Msg.layers()
}

// layers reads the options of an overlay (Documentation/filesystems/overlayfs.rst).
func (m *mountsResponse) layers() (Layers, error) {
	if len(m.mounts) != 1 || m.mounts[0].kind != "overlay" {
		return Layers{}, errors.New("engine: containerd's snapshots: not one overlay")
	}
	var out Layers
	for _, o := range m.mounts[0].options {
		key, value, _ := strings.Cut(o, "=")
		switch key {
		case "lowerdir":
			if out.Lower != nil {
				return Layers{}, errors.New("engine: containerd's snapshots: two lists of layers")
			}
			out.Lower = strings.Split(value, ":")
		case "upperdir":
			if out.Upper != "" {
				return Layers{}, errors.New("engine: containerd's snapshots: two upper layers")
			}
			out.Upper = value
		}
	}
	for _, dir := range append([]string{out.Upper}, out.Lower...) {
		// A backslash escapes a colon in such a list.
		if !filepath.IsAbs(dir) || filepath.Clean(dir) != dir || strings.Contains(dir, `\`) {
			return Layers{}, fmt.Errorf("engine: containerd's snapshots: layer in %.200q", dir)
		}
	}
	if out.Lower == nil {
		return Layers{}, errors.New("engine: containerd's snapshots: no layers")
	}
	return out, nil
}

// snapshotCodec writes the question and reads the answer; errors of the protocol are
// messages of the library.
type snapshotCodec struct{}

func (snapshotCodec) Name() string { return "proto" }

func (snapshotCodec) Marshal(v any) ([]byte, error) {
	switch m := v.(type) {
	case *mountsRequest:
		b := protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), m.snapshotter)
		return protowire.AppendString(protowire.AppendTag(b, 2, protowire.BytesType), m.key), nil
	case proto.Message:
		return proto.Marshal(m)
	}
	return nil, fmt.Errorf("engine: no message: %T", v)
}

func (snapshotCodec) Unmarshal(b []byte, v any) error {
	switch m := v.(type) {
	case *mountsResponse:
		return m.decode(b)
	case proto.Message:
		return proto.Unmarshal(b, m)
	}
	return fmt.Errorf("engine: no message: %T", v)
}

func (m *mountsResponse) decode(b []byte) error {
	m.mounts = nil
	return eachField(b, func(number protowire.Number, value []byte) error {
		if number != 1 {
			return nil
		}
		var s snapshotMount
		err := eachField(value, func(number protowire.Number, value []byte) error {
			switch number {
			case 1:
				s.kind = string(value)
			case 4:
				s.options = append(s.options, string(value))
			}
			return nil
		})
		m.mounts = append(m.mounts, s)
		return err
	})
}

// eachField calls f for each field that is a string or a message; others are skipped.
func eachField(b []byte, f func(protowire.Number, []byte) error) error {
	for len(b) > 0 {
		number, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return protowire.ParseError(n)
		}
		b = b[n:]
		if kind != protowire.BytesType {
			if n = protowire.ConsumeFieldValue(number, kind, b); n < 0 {
				return protowire.ParseError(n)
			}
			b = b[n:]
			continue
		}
		value, n := protowire.ConsumeBytes(b)
		if n < 0 {
			return protowire.ParseError(n)
		}
		if err := f(number, value); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}
