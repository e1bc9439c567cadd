package main

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"

	v1 "portcullis/api/portcullis/v1"
	"portcullis/api/portcullis/v1/portcullisv1connect"
	"portcullis/internal/config"
	"portcullis/internal/rpc"
	"portcullis/lab/dockerd"
	"portcullis/verifier/approval"
	"portcullis/verifier/image"
)

// guarded is an engine behind a verifierd that runs as a process of its own.
type guarded struct {
	engine *dockerd.Engine
	cmd    *exec.Cmd
	key    ed25519.PrivateKey // of the one approver
	dir    string
	socket string // the guard's
	number uint64
}

func startGuarded(ctx context.Context) (g *guarded, err error) {
	e, err := dockerd.Prepare()
	if err != nil {
		return nil, err
	}
	public, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		return nil, errors.Join(err, e.Close())
	}
	g = &guarded{engine: e, key: key, dir: filepath.Join(e.Dir, "bench")}
	g.socket = g.run(rpc.GuardSocket)
	if err := g.start(ctx, public); err != nil {
		return nil, errors.Join(err, g.close())
	}
	return g, nil
}

func (g *guarded) run(name string) string { return filepath.Join(g.engine.Dir, "run", name) }

func (g *guarded) start(ctx context.Context, public ed25519.PublicKey) error {
	approvers, err := approval.Approvers{Threshold: 1, RevokeThreshold: 1, Keys: []ed25519.PublicKey{public}}.Encode()
	if err != nil {
		return err
	}
	text := config.Example(base64.StdEncoding.EncodeToString(public))
	for key, dir := range map[string]string{"run_dir": g.run(""), "state_dir": filepath.Join(g.engine.Dir, "state")} {
		text = regexp.MustCompile(`(?m)^`+key+`:.*$`).ReplaceAllLiteralString(text, key+": "+dir)
	}
	files := map[string][]byte{"portcullis.yaml": []byte(text), "approvers.json": approvers}
	if err := os.Mkdir(g.dir, 0o700); err != nil {
		return err
	}
	for name, b := range files {
		if err := os.WriteFile(filepath.Join(g.dir, name), b, 0o600); err != nil {
			return err
		}
	}
	program := filepath.Join(g.dir, "verifierd")
	if err := command(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", program, "portcullis/cmd/verifierd"); err != nil {
		return err
	}
	g.cmd = exec.Command(program, "-config", filepath.Join(g.dir, "portcullis.yaml"), "-approvers", filepath.Join(g.dir, "approvers.json"),
		"-engine", g.engine.Socket, "-containerd", g.engine.Containerd(), "-plugins", g.engine.Plugins)
	g.cmd.Stderr = os.Stderr
	if err := g.cmd.Start(); err != nil {
		g.cmd = nil
		return err
	}
	plugin := filepath.Join(g.engine.Plugins, dockerd.Plugin+".sock")
	if err := until(ctx, func() bool { _, err := os.Stat(plugin); return err == nil }); err != nil {
		return fmt.Errorf("verifierd does not listen: %w", err)
	}
	g.engine.Gate = g.run(rpc.GateSocket)
	if err := g.engine.Hold(ctx); err != nil {
		return err
	}
	if err := g.engine.Start(ctx, "--authorization-plugin", dockerd.Plugin); err != nil {
		return err
	}
	status := portcullisv1connect.NewVerifierClient(rpc.Client(g.run(rpc.VerifierSocket)), rpc.BaseURL)
	err = until(ctx, func() bool {
		s, err := status.GetVerifierStatus(ctx, connect.NewRequest(&v1.GetVerifierStatusRequest{}))
		return err == nil && s.Msg.Fit
	})
	if err != nil {
		return fmt.Errorf("verifierd is not fit: %w", err)
	}
	return nil
}

func until(ctx context.Context, ok func() bool) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for !ok() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
	return nil
}

func (g *guarded) close() error {
	if g.cmd != nil {
		g.cmd.Process.Kill()
		g.cmd.Wait() // it was killed
	}
	return g.engine.Close()
}

// approve signs an approval of the image in a file.
func (g *guarded) approve(ctx context.Context, file string) error {
	a, err := image.Open(ctx, file, image.Options{})
	if err != nil {
		return err
	}
	defer a.Close()
	g.number++
	envelope, err := approval.Approval{Schema: approval.Schema, Name: fmt.Sprintf("bench-%d", g.number), Version: 1, Purpose: "task", Image: a.Image(),
		Profile: approval.Profile{User: "1000:1000", Network: approval.NetworkNone, AnyCommand: true,
			Limits: approval.Limits{MemoryBytes: 64 << 20, Pids: 32, MilliCPU: 2000}},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour)}.Sign(g.key)
	if err != nil {
		return err
	}
	answer, err := rpc.Client(g.run(rpc.VerifierSocket)).Post(rpc.BaseURL+"/approvals", "application/json", bytes.NewReader(envelope))
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		b, err := io.ReadAll(answer.Body)
		return errors.Join(fmt.Errorf("approvals: %s %s", answer.Status, b), err)
	}
	return nil
}

// memory of verifierd, MiB: now, and the most that it had (proc_pid_status(5)).
func (g *guarded) memory() (now, most float64, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", g.cmd.Process.Pid))
	if err != nil {
		return 0, 0, err
	}
	value := func(key string) float64 {
		_, rest, _ := strings.Cut(string(b), "\n"+key+":")
		words := strings.Fields(rest)
		if len(words) == 0 {
			return 0
		}
		kib, _ := strconv.ParseFloat(words[0], 64)
		return kib / 1024
	}
	return value("VmRSS"), value("VmHWM"), nil
}

// makeImage writes what docker save would: three layers of files of 1 MiB that do
// not compress, drawn from seed.
func makeImage(file string, mib int, seed uint64) error {
	const layers = 3
	dir, err := os.MkdirTemp(filepath.Dir(file), "layers")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	var s [32]byte
	s[0] = byte(seed)
	random := rand.NewChaCha8(s)
	var ids []string
	for l := range layers {
		sum := sha256.New()
		f, err := os.Create(filepath.Join(dir, fmt.Sprint(l)))
		if err != nil {
			return err
		}
		w := tar.NewWriter(io.MultiWriter(f, sum))
		for i := range mib / layers {
			if err := w.WriteHeader(&tar.Header{Name: fmt.Sprintf("data-%d-%03d", l, i), Mode: 0o644, Size: 1 << 20}); err != nil {
				return err
			}
			if _, err := io.CopyN(w, random, 1<<20); err != nil {
				return err
			}
		}
		if err := errors.Join(w.Close(), f.Close()); err != nil {
			return err
		}
		ids = append(ids, "sha256:"+hex.EncodeToString(sum.Sum(nil)))
	}
	return save(file, dir, ids)
}

// save packs the layers in dir.
func save(file, dir string, ids []string) error {
	config, err := json.Marshal(map[string]any{"architecture": runtime.GOARCH, "os": "linux", "config": map[string]any{"Entrypoint": []string{"/none"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": ids}})
	if err != nil {
		return err
	}
	sum := sha256.Sum256(config)
	name := hex.EncodeToString(sum[:]) + ".json"
	var names []string
	for _, id := range ids {
		names = append(names, id[7:]+"/layer.tar")
	}
	manifest, err := json.Marshal([]map[string]any{{"Config": name, "RepoTags": []string{"bench:1"}, "Layers": names}})
	if err != nil {
		return err
	}
	out, err := os.Create(file)
	if err != nil {
		return err
	}
	w := tar.NewWriter(out)
	for i, n := range names {
		if err := pack(w, n, filepath.Join(dir, fmt.Sprint(i))); err != nil {
			return errors.Join(err, out.Close())
		}
	}
	for _, f := range []struct {
		name string
		data []byte
	}{{name, config}, {"manifest.json", manifest}} {
		err = errors.Join(err, w.WriteHeader(&tar.Header{Name: f.name, Mode: 0o644, Size: int64(len(f.data))}))
		_, werr := w.Write(f.data)
		err = errors.Join(err, werr)
	}
	return errors.Join(err, w.Close(), out.Close())
}

func pack(w *tar.Writer, name, from string) error {
	f, err := os.Open(from)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err == nil {
		err = w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: st.Size()})
	}
	if err == nil {
		_, err = io.Copy(w, f)
	}
	return err
}
