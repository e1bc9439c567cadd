package main

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// programs are the two ends.
type programs struct{ attestd, pcs string }

// Where cmd/attestd names the expectations, and what stands there when not all are asked.
const (
	askedFile = "cmd/attestd/fleet.go"
	askedAll  = "Containers: c.Attest.Containers}.All)"
	askedSome = "Containers: c.Attest.Containers}.All, %q))"
	askedFrom = "server.NewImages(c.PXE.ImageDir, c.PXE.ReleaseKeys, c.PXE.Threshold, c.PXE.MinVersion,"
)

// some is what is built beside it then.
const some = `package main

import (
	"strings"

	"portcullis/attestserver/protocol"
)

func some(build func(*protocol.Image) ([]protocol.Expectation, error), ops string) func(*protocol.Image) ([]protocol.Expectation, error) {
	return func(i *protocol.Image) (asked []protocol.Expectation, err error) {
		all, err := build(i)
		for _, e := range all {
			if strings.Contains(","+ops+",", ","+e.Name()+",") {
				asked = append(asked, e)
			}
		}
		return asked, err
	}
}
`

// profiled is built beside it where attestd is to be profiled, between two signals.
const profiled = `package main

import (
	"encoding/json"
	"os"
	"os/signal"
	"runtime"
	"runtime/pprof"
	"syscall"
)

func init() {
	at := os.Getenv("` + profileEnv + `")
	file := func(name string) *os.File {
		f, err := os.Create(at + name)
		if err != nil {
			panic(err)
		}
		return f
	}
	told := make(chan os.Signal, 2)
	signal.Notify(told, syscall.SIGUSR1)
	go func() {
		<-told
		f := file(".cpu")
		pprof.StartCPUProfile(f)
		<-told
		pprof.StopCPUProfile()
		f.Close()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		for _, kind := range []string{"heap", "goroutine", "allocs"} {
			f := file("." + kind)
			pprof.Lookup(kind).WriteTo(f, 0)
			f.Close()
		}
		b, _ := json.MarshalIndent(m, "", "\t")
		os.WriteFile(at+"` + profileEnd + `", b, 0o600)
	}()
}
`

const (
	profileEnv = "PORTCULLIS_ATTESTD_PROFILE"
	profileEnd = ".memstats" // is written last
)

// build makes cmd/attestd, which asks all ops or some, and the PCs.
func build(ctx context.Context, dir, ops string, profile bool) (*programs, error) {
	p := &programs{filepath.Join(dir, "attestd"), filepath.Join(dir, "pcs")}
	attestd := []string{"build", "-o", p.attestd}
	if ops != "all" || profile {
		overlay, err := only(dir, ops, profile)
		if err != nil {
			return nil, err
		}
		attestd = append(attestd, "-overlay", overlay)
	}
	for _, args := range [][]string{append(attestd, "portcullis/cmd/attestd"), {"test", "-c", "-o", p.pcs, "portcullis/attestserver/expect"}} {
		if err := command(ctx, "go", args...); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// only leaves what the compiler takes instead of one file, in which the image's
// expectations go through some, and beside it. The rest of cmd/attestd is as it is.
func only(dir, ops string, profile bool) (overlay string, err error) {
	root, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return "", err
	}
	at := filepath.Join(strings.TrimSpace(string(root)), askedFile)
	content := make(map[string]string) // by the place that the compiler believes in
	if ops != "all" {
		b, err := os.ReadFile(at)
		if err != nil {
			return "", err
		}
		text := string(b)
		if strings.Count(text, askedAll) != 1 || strings.Count(text, askedFrom) != 1 {
			return "", errors.New(askedFile + " names the expectations in another way")
		}
		text = strings.Replace(text, askedAll, fmt.Sprintf(askedSome, ops), 1)
		content[at] = strings.Replace(text, askedFrom, askedFrom+" some(", 1)
		content[filepath.Join(filepath.Dir(at), "some.go")] = some
	}
	if profile {
		content[filepath.Join(filepath.Dir(at), "profiled.go")] = profiled
	}
	files := make(map[string]string)
	for place, text := range content {
		files[place] = filepath.Join(dir, filepath.Base(place))
		if err := os.WriteFile(files[place], []byte(text), 0o600); err != nil {
			return "", err
		}
	}
	list, err := json.Marshal(map[string]any{"Replace": files})
	if err != nil {
		return "", err
	}
	overlay = filepath.Join(dir, "overlay.json")
	return overlay, os.WriteFile(overlay, list, 0o600)
}

// The peer is a module of its own, and no Go file to this one: nothing of the product
// depends on what it needs.
var (
	//go:embed peer/main.go.txt
	peerMain string
	//go:embed peer/go.mod.txt
	peerMod string
	//go:embed peer/go.sum.txt
	peerSum string
)

// quote has both verify the same quotes of one chip (swtpm), and prints what each says.
func quote(ctx context.Context, dir string, rounds int) error {
	peer, left := filepath.Join(dir, "peer"), filepath.Join(dir, "quote.json")
	for name, content := range map[string]string{"main.go": peerMain, "go.mod": peerMod, "go.sum": peerSum} {
		at := filepath.Join(dir, "peer-module", name)
		if err := os.MkdirAll(filepath.Dir(at), 0o700); err != nil {
			return err
		}
		if err := os.WriteFile(at, []byte(content), 0o600); err != nil {
			return err
		}
	}
	if err := command(ctx, "go", "build", "-C", filepath.Join(dir, "peer-module"), "-o", peer, "."); err != nil {
		return err
	}
	ours := exec.CommandContext(ctx, "go", "test", "portcullis/attestserver/expect", "-run", "^$", "-bench", "TpmJudge", "-benchtime", fmt.Sprintf("%dx", rounds))
	ours.Env = append(os.Environ(), "CGO_ENABLED=0", "PORTCULLIS_QUOTE_OUT="+left)
	for _, c := range []*exec.Cmd{ours, exec.CommandContext(ctx, peer, left, fmt.Sprint(rounds))} {
		c.Stdout, c.Stderr = os.Stdout, os.Stderr
		if err := c.Run(); err != nil {
			return fmt.Errorf("%s: %w", filepath.Base(c.Path), err)
		}
	}
	return nil
}

func command(ctx context.Context, name string, args ...string) error {
	c := exec.CommandContext(ctx, name, args...)
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w\n%s", name, args[0], err, out)
	}
	return nil
}
