package guard

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"portcullis/internal/event"
	"portcullis/verifier/engine"
	"portcullis/verifier/gate"
	"portcullis/verifier/record"
)

// Every is the pace of reconciliation, beside the engine's events.
const Every = 5 * time.Second

// Run watches the engine until ctx ends: its events, its containers, its images and
// its programs. An engine that is away is asked again.
func (g *Guard) Run(ctx context.Context) error {
	go g.listen(ctx)
	go g.sampling(ctx)
	g.work.Go(func() { g.sealing(ctx) })
	defer g.work.Wait()
	changed := g.opt.Approvals.Changed()
	g.work.Go(func() { g.revoking(ctx, changed) })
	for {
		next := Every
		if !g.engineAnswers() {
			next = time.Second
		}
		select {
		case <-ctx.Done():
			return nil
		case <-g.fresh:
			g.meet(ctx)
		case <-g.wake:
			g.reconcile(ctx)
		case <-g.opt.Clock.After(next):
			g.reconcile(ctx)
		}
	}
}

// listen hears the engine's events. What began before it listened is for reconcile.
func (g *Guard) listen(ctx context.Context) {
	told := false // that it is away
	for ctx.Err() == nil {
		err := g.opt.Engine.Watch(ctx, func() { told = false; signal(g.fresh) }, func(kind, action, id string) { g.heard(ctx, kind, action, id) })
		if ctx.Err() == nil {
			g.mu.Lock()
			g.mark("self-test", false, "the engine was away")
			g.mu.Unlock()
			if !told {
				g.opt.Events.Emit("engine.lost", event.Fields{"reason": ReasonEngine, "detail": err.Error()})
			}
			told = true
		}
		select {
		case <-ctx.Done():
		case <-g.opt.Clock.After(time.Second):
		}
	}
}

// engineItself is the caller of what nobody asked the guard for.
const engineItself = "engine"

// signal makes Run do what c stands for, soon.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// meet is what an engine goes through that answers for the first time, or again: it
// may be another one. Until it is through, nothing is started. A self-test that was not answered, as on a busy
// machine, is made once more later; one that was answered wrongly is not.
func (g *Guard) meet(ctx context.Context) {
	err := g.connect(ctx)
	if err == nil {
		err = g.measure()
	}
	if err == nil {
		if err = g.SelfTest(ctx); err != nil && !errors.Is(err, errUnlocked) {
			g.work.Go(func() {
				select {
				case <-ctx.Done():
				case <-g.opt.Clock.After(testAgain):
					signal(g.fresh)
				}
			})
		}
	}
	g.mu.Lock()
	g.tested = g.opt.Clock.Now()
	g.mark("self-test", err == nil, fmt.Sprint(err))
	api, version := g.info.API, g.info.Version
	g.mu.Unlock()
	g.reconcile(ctx)
	f := event.Fields{"engine": version, "api": api, "fit": true, "held": g.runtime() == gate.Runtime}
	if err = errors.Join(err, g.fit()); err != nil {
		f["fit"], f["reason"], f["detail"] = false, ReasonUnfit, err.Error()
	}
	g.opt.Events.Emit("engine.met", f)
	// What a former life did not come to.
	for _, known := range g.state.images() {
		g.sealLater(known.Image.Config)
	}
	g.fill(ctx)
}

// heard acts on one event at once where it is plain, and has the rest looked at.
func (g *Guard) heard(ctx context.Context, kind, action, id string) {
	if kind == "container" && strings.HasPrefix(action, "exec_create") {
		g.end(ctx, id, refuse(ReasonProgram, "%s", printable(action, 200)))
		return
	}
	switch action {
	case "create", "start", "restart", "unpause", "update", "rename", "load", "import", "pull", "tag", "commit":
		signal(g.wake)
	}
}

// revoking ends what a revocation has reached, and waits for nothing else: neither for the
// reconciliation nor for what ended before, as an engine that hangs answers neither.
func (g *Guard) revoking(ctx context.Context, changed <-chan struct{}) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-changed:
			changed = g.opt.Approvals.Changed() // first: what comes meanwhile is seen the next time
			g.work.Go(func() { g.standing(ctx) })
		}
	}
}

// standing ends what runs without a permission that still stands, all of it beside each
// other. It reads the guard's own list, so that it waits for nothing else.
func (g *Guard) standing(ctx context.Context) {
	var ended sync.WaitGroup
	for id, made := range g.state.containers() {
		if !made.Permitted {
			continue
		}
		if err := g.opt.Approvals.Holds(made.Permission.Approval); err != nil {
			ended.Go(func() { g.end(ctx, id, err) })
		}
	}
	ended.Wait()
}

// endLimit bounds the wait for an engine that does not answer: the container is tried again
// with the next look at all of them.
const endLimit = time.Minute

// end kills and removes a container, and reports it. What cannot be written down is ended
// all the same. One that is being ended is not waited for.
func (g *Guard) end(ctx context.Context, id string, why error) {
	if _, being := g.ending.LoadOrStore(id, true); being {
		return
	}
	defer g.ending.Delete(id)
	ctx, cancel := context.WithTimeout(ctx, endLimit)
	defer cancel()
	reason, detail := reasonOf(why)
	var err error
	// The kernel ends what the guard sees; the engine may be busy, or hang.
	if !g.killed(id) {
		paused := g.opt.Engine.Pause(ctx, id)
		err = g.opt.Engine.Kill(ctx, id)
		if paused != nil && err != nil {
			err = nil // neither worked: it is not running
		}
	}
	err = errors.Join(err, g.Refuse(record.Refusal{Action: ActionRun, Reason: reason, Detail: "container " + id + ": " + detail, Caller: engineItself}))
	err = errors.Join(err, g.remove(ctx, id))
	f := event.Fields{"container": id, "reason": reason, "detail": detail}
	if err != nil {
		f["failed"] = err.Error()
	}
	g.opt.Events.Emit("container.ended", f)
}

// lookLimit bounds how long a look waits for the engine: at its containers, and at its images.
const lookLimit = time.Minute

// reconcile makes the engine hold what the guard made, and nothing else.
func (g *Guard) reconcile(ctx context.Context) {
	g.standing(ctx)
	err := errors.Join(g.containers(ctx), g.images(ctx))
	g.tasks()
	answered := g.engineAnswers()
	g.mu.Lock()
	g.mark("engine", err == nil, "it does not answer")
	g.mu.Unlock()
	if err != nil && answered && ctx.Err() == nil {
		g.opt.Events.Emit("engine.failed", event.Fields{"reason": ReasonEngine, "detail": err.Error()})
	}
	g.programs()
}

func (g *Guard) engineAnswers() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	_, lost := g.unfit["engine"]
	return !lost
}

func (g *Guard) containers(ctx context.Context) error {
	// The wait for the step is not the engine's: a start may hold it for long, and the look would find no time.
	if err := g.step.within(ctx); err != nil {
		return err
	}
	defer g.step.Unlock()
	ctx, cancel := context.WithTimeout(ctx, lookLimit)
	defer cancel()
	before := g.state.containers() // not all that is removed waits for the step
	list, err := g.opt.Engine.Containers(ctx)
	if err != nil {
		return err
	}
	there := map[string]bool{}
	for _, c := range list {
		there[c.ID] = true
		made, ok := g.state.container(c.ID)
		if !ok && g.comparing[c.ID] && c.State == "created" {
			continue
		}
		if _, was := before[c.ID]; was && !ok {
			continue // the guard removed it since the list was made; what is still there next time is unknown
		}
		if !ok {
			g.end(ctx, c.ID, refuse(ReasonContainer, "the guard did not make it; image %s, %s", c.Image, c.State))
			continue
		}
		if c.State != "running" && c.State != "paused" && c.State != "restarting" {
			g.still.Store(c.ID, true) // until run starts it
			continue
		}
		if !made.Permitted {
			g.end(ctx, c.ID, refuse(ReasonContainer, "it runs, and nobody was permitted to start it"))
			continue
		}
		if _, still := g.still.Load(c.ID); still {
			g.end(ctx, c.ID, refuse(ReasonContainer, "it runs again, and nobody was permitted to start it again"))
			continue
		}
		if err := g.inspect(ctx, c.ID, made); err != nil {
			if errors.Is(err, engine.ErrNotFound) {
				continue // it was removed since the list was made
			}
			var own *Error
			if !errors.As(err, &own) {
				return err
			}
			g.end(ctx, c.ID, err)
		}
	}
	g.still.Range(func(id, _ any) bool {
		if !there[id.(string)] {
			g.still.Delete(id)
		}
		return true
	})
	gone := false
	for id := range g.state.containers() {
		gone = gone || !there[id]
	}
	if !gone {
		return nil
	}
	return g.state.change(func(f *stateFile) {
		for id := range f.Containers {
			if !there[id] {
				delete(f.Containers, id)
			}
		}
	})
}

func (g *Guard) images(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, lookLimit)
	defer cancel()
	list, err := g.opt.Engine.Images(ctx)
	if err != nil {
		return err
	}
	there := map[string]bool{}
	defer func() { g.tags.only(there) }()
	for _, id := range list {
		if known, ok := g.state.image(id); ok {
			there[known.Image.Config] = true
			continue
		}
		err := g.Refuse(record.Refusal{Action: ActionHold, Reason: ReasonUnknownImage, Detail: "the guard did not load it", Image: id, Caller: engineItself})
		f := event.Fields{"image": id, "reason": ReasonUnknownImage}
		if err := errors.Join(err, g.opt.Engine.RemoveImage(ctx, id)); err != nil && !errors.Is(err, engine.ErrNotFound) {
			f["failed"] = err.Error()
		}
		g.opt.Events.Emit("image.removed", f)
	}
	return nil
}

// program is one of the engine's, as it was at the start.
type program struct {
	digest string // "" until an engine was met
	mark   fileMark
}

// fileMark changes with every write that goes through the file system; only then
// the bytes are read again.
type fileMark struct {
	inode        uint64
	size         int64
	mtime, ctime unix.Timespec
}

func markOf(path string) (fileMark, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return fileMark{}, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return fileMark{st.Ino, st.Size, st.Mtim, st.Ctim}, nil
}

func newProgram(path string) (program, error) {
	m, err := markOf(path)
	if err != nil {
		return program{}, err
	}
	d, err := digestFile(path)
	return program{d, m}, err
}

// measure reads the programs of an engine that is met for the first time. One that
// was changed since the start is left to programs.
func (g *Guard) measure() error {
	for path, p := range g.binaries {
		if p.digest != "" {
			continue
		}
		now, err := newProgram(path)
		if err != nil {
			return fmt.Errorf("guard: program of the engine: %w", err)
		}
		if now.mark == p.mark {
			g.binaries[path] = now
		}
	}
	return nil
}

// programs holds the engine's programs against what they were at the start. One
// that changed makes the node unfit until the guard starts again.
func (g *Guard) programs() {
	for path, was := range g.binaries {
		m, err := markOf(path)
		if err == nil && m == was.mark {
			continue
		}
		now, err := newProgram(path)
		if err == nil && now.digest == was.digest {
			g.binaries[path] = now
			continue
		}
		if err != nil {
			now.digest = err.Error()
		}
		g.mu.Lock()
		_, known := g.unfit[path]
		g.mark(path, false, "changed since the start")
		g.mu.Unlock()
		if !known {
			rerr := g.Refuse(record.Refusal{Action: ActionHold, Reason: ReasonBinary, Detail: path + " is now " + now.digest, Caller: engineItself})
			f := event.Fields{"program": path, "reason": ReasonBinary, "digest": now.digest}
			if rerr != nil {
				f["failed"] = rerr.Error()
			}
			g.opt.Events.Emit("engine.changed", f)
		}
	}
}

func digestFile(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return "sha256:" + hex.EncodeToString(h.Sum(nil)), nil
}
