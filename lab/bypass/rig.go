package bypass

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"portcullis/internal/clock"
	"portcullis/internal/event"
	"portcullis/internal/rpc"
	"portcullis/lab/dockerd"
	"portcullis/verifier/approval"
	"portcullis/verifier/engine"
	"portcullis/verifier/guard"
	"portcullis/verifier/image"
	"portcullis/verifier/lock"
	"portcullis/verifier/record"
	"portcullis/verifier/stamp"
)

// Rig is what is attacked: an engine, its guard and lock, and a log of approvals
// with one approver.
type Rig struct {
	daemon *dockerd.Engine
	press  *stamp.Press
	door   *engine.Client // with stamps: what the guard alone should have
	guard  *guard.Guard
	log    *record.Record
	key    ed25519.PrivateKey // of the approver
	logKey ed25519.PublicKey
	logDir string
	socket string // the guard's
	events *events

	probe     []byte
	image     string // an approved one, loaded
	container string // made of it, not started
	number    uint64
	note      string // of the way that is gone, for people

	// Rounds is how often the ways that are races are run; 0 is DefaultRounds.
	Rounds int

	cancel context.CancelFunc
	work   sync.WaitGroup
}

var profile = approval.Profile{User: "1000:1000", Network: approval.NetworkNone, AnyCommand: true,
	Limits: approval.Limits{MemoryBytes: 64 << 20, Pids: 32, MilliCPU: 1000}}

// Start starts everything, with an engine of one of dockerd.Kinds ("": this
// machine's), and loads one approved image. Close ends it.
func Start(ctx context.Context, kind string) (*Rig, error) {
	d, err := dockerd.PrepareKind(ctx, kind)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	r := &Rig{daemon: d, press: stamp.New(time.Now), socket: filepath.Join(d.Dir, "guard.sock"), events: &events{}, cancel: cancel}
	for _, step := range []func(context.Context) error{r.openLog, r.build, r.lock, r.engine, r.serve, r.prepare} {
		if err := step(ctx); err != nil {
			return nil, errors.Join(err, r.Close())
		}
	}
	return r, nil
}

func (r *Rig) openLog(context.Context) (err error) {
	public, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		return err
	}
	logPublic, logKey, err := ed25519.GenerateKey(nil)
	if err != nil {
		return err
	}
	r.key, r.logKey, r.logDir = key, logPublic, filepath.Join(r.daemon.Dir, "approvals")
	r.log, err = record.Open(record.Options{Dir: r.logDir, Key: logKey, Now: time.Now,
		Approvers: approval.Approvers{Threshold: 1, RevokeThreshold: 1, Keys: []ed25519.PublicKey{public}}})
	return err
}

func (r *Rig) build(ctx context.Context) (err error) {
	r.probe, err = dockerd.Probe(ctx)
	return err
}

func (r *Rig) lock(ctx context.Context) error {
	l, err := rpc.Listen(filepath.Join(r.daemon.Plugins, dockerd.Plugin+".sock"), nil)
	if err != nil {
		return err
	}
	r.work.Go(func() {
		rpc.Serve(ctx, l, lock.Handler(r.press, func(method, uri, reason, detail string) {
			r.guard.Refuse(record.Refusal{Action: guard.ActionEngine, Reason: reason, Detail: method + " " + uri + ": " + detail, Caller: "engine"})
		}))
	})
	return nil
}

func (r *Rig) engine(ctx context.Context) (err error) {
	if r.door, err = engine.New(r.daemon.Socket, r.press); err != nil {
		return err
	}
	r.guard, err = guard.New(guard.Options{Engine: r.door, Approvals: r.log, StateDir: filepath.Join(r.daemon.Dir, "state"), Socket: r.socket, Gate: true,
		Door: r.daemon.Socket, Containerd: r.daemon.Containerd(), Sample: 200 * time.Millisecond, Clock: clock.Real{}, Events: event.NewJSON(r.events, "guard", time.Now),
		Read: func(ctx context.Context, from io.Reader, o image.Options) (*image.Archive, error) {
			o.Platform = "linux/" + runtime.GOARCH
			return image.Read(ctx, from, r.daemon.Dir, o)
		}})
	if err != nil {
		return err
	}
	if err := r.daemon.Hold(ctx); err != nil {
		return err
	}
	return r.daemon.Start(ctx, "--authorization-plugin", dockerd.Plugin)
}

func (r *Rig) serve(ctx context.Context) error {
	l, err := rpc.Listen(r.socket, nil)
	if err != nil {
		return err
	}
	asked, err := rpc.Listen(r.daemon.Gate, nil)
	if err != nil {
		return err
	}
	r.work.Go(func() { r.guard.Serve(ctx, l) })
	r.work.Go(func() { r.guard.ServeGate(ctx, asked) })
	r.work.Go(func() { r.guard.Run(ctx) })
	if !r.events.wait(ctx, 0, time.Minute, func(e map[string]any) bool { return e["event"] == "engine.met" && e["fit"] == true }) {
		return fmt.Errorf("bypass: the guard found its engine unfit:\n%s", r.events)
	}
	return nil
}

// prepare makes what the attacks use: an approved image and a container of it.
func (r *Rig) prepare(ctx context.Context) error {
	i, err := dockerd.Make("good:1", r.probe, "good")
	if err != nil {
		return err
	}
	if err := r.approve(ctx, i, nil); err != nil {
		return err
	}
	if r.image, err = r.guard.Import(ctx, bytes.NewReader(i.Tar), "lab"); err != nil {
		return err
	}
	r.container, err = r.make(`{"Image":"` + r.image + `","Cmd":["wait"]}`)
	return err
}

// make creates a container through the guard.
func (r *Rig) make(body string) (string, error) {
	status, answer, err := r.send(r.socket, post("POST", "/v1.41/containers/create", jsonType, body))
	var made struct {
		ID string `json:"Id"`
	}
	if err == nil && status != http.StatusCreated {
		err = fmt.Errorf("bypass: create: %d %s", status, answer)
	}
	if err == nil {
		err = json.Unmarshal([]byte(answer), &made)
	}
	return made.ID, err
}

// start starts a container through the guard.
func (r *Rig) start(id string) error {
	status, answer, err := r.send(r.socket, request("POST /v1.41/containers/"+id+"/start HTTP/1.1", "Content-Length: 0\r\n", ""))
	if err == nil && status != http.StatusNoContent {
		err = fmt.Errorf("bypass: start: %d %s", status, answer)
	}
	return err
}

// approve signs an approval of i; change may make it one that does not hold.
func (r *Rig) approve(ctx context.Context, i dockerd.Image, change func(*approval.Approval)) error {
	read, err := image.Read(ctx, bytes.NewReader(i.Tar), r.daemon.Dir, image.Options{})
	if err != nil {
		return err
	}
	defer read.Close()
	r.number++
	a := approval.Approval{Schema: approval.Schema, Name: fmt.Sprintf("lab-%d", r.number), Version: 1, Purpose: "task", Image: read.Image(),
		Profile: profile, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	if change != nil {
		change(&a)
	}
	envelope, err := a.Sign(r.key)
	if err == nil {
		_, err = r.log.Add(envelope)
	}
	return err
}

// Close ends what was started and removes its files.
func (r *Rig) Close() error {
	r.cancel()
	r.work.Wait()
	var err error
	if r.log != nil {
		err = r.log.Close()
	}
	return errors.Join(err, r.daemon.Close())
}

// cut at the end of a text closes the sending half behind it.
const cut = "<cut>"

// dial connects, for at most a minute.
func (r *Rig) dial(socket, text string) (net.Conn, *bufio.Reader, error) {
	c, err := net.Dial("unix", socket)
	if err != nil {
		return nil, nil, err
	}
	c.SetDeadline(time.Now().Add(time.Minute))
	text = strings.NewReplacer("{container}", r.container, "{image}", r.image).Replace(text)
	if head, body, ok := strings.Cut(text, "\r\n\r\n"); ok && body != "" && strings.Contains(body, r.image) {
		// The names that were put in have made the body longer.
		text = resized(head, body)
	}
	go func() { // the answer may come before all is written
		io.WriteString(c, text)
		if strings.HasSuffix(text, cut) {
			c.(*net.UnixConn).CloseWrite()
		}
	}()
	return c, bufio.NewReader(c), nil
}

// resized writes the length of the body into the head, where the head has one.
func resized(head, body string) string {
	lines := strings.Split(head, "\r\n")
	for i, l := range lines {
		if strings.HasPrefix(l, "Content-Length: ") {
			lines[i] = fmt.Sprintf("Content-Length: %d", len(body))
		}
	}
	return strings.Join(lines, "\r\n") + "\r\n\r\n" + body
}

// send sends bytes and reads one answer.
func (r *Rig) send(socket, text string) (int, string, error) {
	c, in, err := r.dial(socket, text)
	if err != nil {
		return 0, "", err
	}
	defer c.Close()
	return answer(in)
}

func answer(in *bufio.Reader) (int, string, error) {
	a, err := http.ReadResponse(in, nil)
	if err != nil {
		return 0, "", err
	}
	defer a.Body.Close()
	b, err := io.ReadAll(io.LimitReader(a.Body, 1<<20))
	return a.StatusCode, string(b), err
}

// two reads two answers to what was sent at once.
func (r *Rig) two(socket, text string) (first, second int, err error) {
	c, in, err := r.dial(socket, text)
	if err != nil {
		return 0, 0, err
	}
	defer c.Close()
	if first, _, err = answer(in); err == nil {
		second, _, err = answer(in)
	}
	return first, second, err
}

// knock wants a refusal.
func (r *Rig) knock(socket, text string) error {
	status, body, err := r.send(socket, text)
	if err != nil {
		return err
	}
	if status < 400 {
		return fmt.Errorf("answered %d %.200s", status, body)
	}
	return nil
}
