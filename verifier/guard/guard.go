package guard

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sort"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"portcullis/internal/clock"
	"portcullis/internal/event"
	"portcullis/verifier/approval"
	"portcullis/verifier/engine"
	"portcullis/verifier/image"
	"portcullis/verifier/record"
	"portcullis/verifier/verity"
)

// Options of New. All but Binaries, Containerd, Reserved, ReservedNames, Gate, Verity, Tagger and Sample are needed.
type Options struct {
	Engine    *engine.Client
	Approvals Approvals
	// Read takes an archive apart, holding every digest of it against its bytes: image.Read.
	Read     func(ctx context.Context, from io.Reader, o image.Options) (*image.Archive, error)
	StateDir string // the verifier's own, mode 0700
	// Kept is where loaded images are kept for an engine whose disk begins empty, on
	// the file system that Read takes them into; "": nothing is kept.
	Kept     string
	Socket   string // the guard's own, where Serve listens: the self-test knocks there
	Door     string // the engine's, where the self-test must find a lock
	Binaries []string
	// Containerd is the address of the containerd that runs the engine's containers: what
	// runs there without the engine is ended. "" = nobody looks.
	Containerd string
	// Reserved are purposes, ReservedNames names of containers, that callers cannot have: they
	// are of what the verifier runs for itself.
	Reserved, ReservedNames []string

	Gate   bool           // ServeGate answers the engine's runtime
	Verity verity.Files   // nil: the kernel's
	Tagger *verity.Tagger // nil: one, where the processor makes it quick
	Sample time.Duration  // between two looks at files of running containers; Every where it is 0
	Clock  clock.Clock
	Events *event.Writer
}

// Guard is the judge. New makes it, Run watches, Serve takes callers.
type Guard struct {
	opt   Options
	state *state
	// step is held where the engine and the state differ for a moment.
	step      stepLock
	comparing map[string]bool    // containers of renew, which are not in the state and never run; of step
	renewing  sync.Mutex         // held by renew, and taken before step
	wake      chan struct{}      // somebody saw a reason to reconcile
	fresh     chan struct{}      // the engine answers, for the first time or again
	binaries  map[string]program // by path; Run's own
	shims     map[int]time.Time  // of containers that nobody knows, since when; Run's own
	again     atomic.Bool        // tasks looks again soon
	ending    sync.Map           // IDs of containers that are being ended
	still     sync.Map           // IDs of containers that did not run when the engine was asked, and were not started since
	work      sync.WaitGroup     // what Run began beside itself
	filling   sync.Mutex         // held while kept images are loaded
	loads     chan struct{}      // holds a token for each load of a caller
	rootLoads chan struct{}      // of root
	paces     paces              // of callers
	turns     turns              // of who switches verity on for a file
	unsealed  chan struct{}      // there is something in toSeal
	gated     gated              // starts that wait for the guard
	tags      *tags              // by which starts recognize files that have no verity

	mu      sync.Mutex
	info    engine.Info
	unfit   map[string]string // reason → detail
	refused map[string]uint64 // by reason
	tested  time.Time
	layers  layersHeld          // of the last image that was compared as a whole
	slow    map[string][]string // files of an image that its last comparison hashed, by its ID
	toSeal  map[string]bool     // configurations of images whose files are to get verity
}

// New reads what a former life left. The guard refuses to start anything until a
// self-test has passed.
func New(opt Options) (*Guard, error) {
	if opt.Sample == 0 {
		opt.Sample = Every
	}
	if opt.Verity == nil {
		opt.Verity = verity.Kernel{}
	}
	if opt.Tagger == nil {
		opt.Tagger = verity.QuickTagger()
	}
	s, err := openState(opt.StateDir)
	if err != nil {
		return nil, err
	}
	if opt.Kept != "" {
		if err := openKept(opt.Kept); err != nil {
			return nil, err
		}
	}
	g := &Guard{opt: opt, state: s, step: newStepLock(), loads: make(chan struct{}, maxLoads), rootLoads: make(chan struct{}, maxLoads), wake: make(chan struct{}, 1), fresh: make(chan struct{}, 1),
		unfit: map[string]string{"self-test": "none has passed yet"}, refused: map[string]uint64{}, binaries: map[string]program{},
		comparing: map[string]bool{}, slow: map[string][]string{}, unsealed: make(chan struct{}, 1), toSeal: map[string]bool{}, gated: gated{starts: map[string]*starting{}}, tags: newTags(opt.Tagger)}
	for _, b := range opt.Binaries {
		// Their bytes are read when the engine is met: where none runs that is not needed.
		p, err := markOf(b)
		if errors.Is(err, os.ErrNotExist) {
			continue // engines differ in which shims they have
		}
		if err != nil {
			return nil, fmt.Errorf("guard: program of the engine: %w", err)
		}
		g.binaries[b] = program{mark: p}
	}
	return g, nil
}

// connect asks the engine what it is.
func (g *Guard) connect(ctx context.Context) error {
	info, err := g.opt.Engine.Info(ctx)
	if err != nil {
		return err
	}
	if _, err := minor(info.API); err != nil {
		return err
	}
	untold := tellable(info, g.opt.Engine.LayersTold(ctx, info))
	g.mu.Lock()
	defer g.mu.Unlock()
	g.info = info
	g.mark("engine-gate", true, "") // another one may ask
	g.mark("engine-seccomp", info.Seccomp, "the engine filters no system calls")
	g.mark("engine-layers", untold == nil, fmt.Sprint(untold))
	g.mark("engine-limits", len(info.Missing) == 0, "the kernel cannot limit "+strings.Join(info.Missing, ", "))
	return nil
}

// tellable is nil where the files of an engine's layers can be compared with their
// image; told is what asking for the layers has shown.
func tellable(info engine.Info, told error) error {
	switch {
	case told != nil:
		return told
	case info.Rootless:
		return errors.New("of an engine that is not root it is not known whom its files belong to")
	case info.Containerd && info.Userns:
		return errors.New("with the containerd image store an engine with user namespaces copies each image into each container: take its overlay2 store")
	}
	return nil
}

// mark makes the node fit or unfit in one respect. g.mu is held.
func (g *Guard) mark(what string, fit bool, detail string) {
	if fit {
		delete(g.unfit, what)
		return
	}
	g.unfit[what] = detail
}

// fit is nil when containers may be started.
func (g *Guard) fit() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.unfit) == 0 {
		return nil
	}
	var list []string
	for what, detail := range g.unfit {
		list = append(list, what+": "+detail)
	}
	sort.Strings(list)
	return refuse(ReasonUnfit, "%s", strings.Join(list, "; "))
}

// minor is the newest version that is spoken with an engine which speaks api.
func minor(api string) (int, error) {
	text, ok := strings.CutPrefix(api, "1.")
	n, err := strconv.Atoi(text)
	if !ok || err != nil || n < MinAPI || n > 99 {
		return 0, fmt.Errorf("guard: the engine speaks API %.20q; 1.%d or later is needed", api, MinAPI)
	}
	return min(n, MaxAPI), nil
}

// call is one request on its way.
type call struct {
	version    int // of the API, the minor number
	newest     int // that is spoken with this engine
	path       string
	kind, name string // what the path names: container or image
	head, tail string // around it
	query      map[string][]string
	moves      bool // it starts, ends, removes or can hold up what the path names

	caller string
	w      http.ResponseWriter
	r      *http.Request
}

// uri is the request line that the engine gets: put together here, from parts that were checked.
func (c *call) uri() string {
	path := c.path
	if c.kind != "" {
		path = c.head + c.name + c.tail
	}
	keys := make([]string, 0, len(c.query))
	for k := range c.query {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	var q strings.Builder
	for i, k := range keys {
		q.WriteString(map[bool]string{true: "?", false: "&"}[i == 0])
		// The forms of all parameters need no escaping but for a time's plus.
		q.WriteString(k + "=" + strings.ReplaceAll(c.query[k][0], "+", "%2B"))
	}
	return fmt.Sprintf("/v1.%d/%s%s", c.version, path, q.String())
}

// ServeHTTP judges one request.
func (g *Guard) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	caller := ""
	if w, ok := r.Context().Value(callerKey{}).(*watched); ok {
		w.asked.Store(true)
		caller = w.caller
	}
	g.mu.Lock()
	newest, err := minor(g.info.API)
	g.mu.Unlock()
	if err != nil {
		err = refuse(ReasonEngine, "the engine has not answered yet")
	}
	var e *endpoint
	var c *call
	if err == nil {
		e, c, err = find(r, newest)
	}
	if err == nil {
		c.caller, c.w, c.r = caller, w, r
		if e.body == noBody {
			http.NewResponseController(w).SetReadDeadline(time.Time{})
		}
		err = e.do(g, c)
	}
	if err != nil {
		// What was not read of a body is not read as the next request.
		w.Header().Set("Connection", "close")
		g.refuse(w, r, caller, err)
	}
}

// Refuse writes a refusal down, counts and tells it; those of package lock come this way too.
func (g *Guard) Refuse(r record.Refusal) error {
	r.Detail, r.Image = printable(r.Detail, 400), printable(r.Image, 200)
	g.told(r)
	return g.opt.Approvals.Refuse(r)
}

// told counts and tells a refusal.
func (g *Guard) told(r record.Refusal) {
	g.mu.Lock()
	g.refused[r.Reason]++
	g.mu.Unlock()
	g.opt.Events.Emit("guard.refused", event.Fields{"action": r.Action, "reason": r.Reason, "detail": r.Detail, "image": r.Image, "caller": r.Caller})
}

// printable keeps a stranger's bytes from being anything but text in the log.
func printable(s string, most int) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, s[:min(len(s), most)])
}

// refuse answers no. What Decide refused stands in the log already.
func (g *Guard) refuse(w http.ResponseWriter, r *http.Request, caller string, err error) {
	var decided *decidedError
	reason, detail := reasonOf(err)
	no := record.Refusal{Action: ActionAPI, Reason: reason, Detail: printable(r.Method+" "+r.RequestURI, 120) + ": " + detail, Caller: caller}
	if errors.As(err, &decided) {
		g.told(no)
	} else if lerr := g.Refuse(no); lerr != nil {
		reason, detail = ReasonLog, lerr.Error()
	}
	code := http.StatusForbidden
	switch {
	case errors.Is(err, engine.ErrNotFound), reason == ReasonContainer:
		code = http.StatusNotFound
	case reason == ReasonEngine:
		code = http.StatusBadGateway
	}
	fail(w, code, "portcullis: "+reason+": "+detail)
}

// decidedError is a refusal of Decide, which the log has already.
type decidedError struct{ err error }

// decided tells refusals of Decide from a log that cannot be written.
func decided(err error) error {
	if approval.Reason(err) == "" {
		return refuse(ReasonLog, "%v", err)
	}
	return &decidedError{err}
}

func (e *decidedError) Error() string { return e.err.Error() }
func (e *decidedError) Unwrap() error { return e.err }

// fail answers as engines do.
func fail(w http.ResponseWriter, code int, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	json.NewEncoder(w).Encode(map[string]string{"message": message})
}

type callerKey struct{}

// MaxCallers is how many connections are open at once; more wait. Those of others than root are at most
// maxOthers; more are closed.
const (
	MaxCallers = 64
	maxOthers  = 48
)

// Serve takes callers on l until ctx ends. Who calls is read from the kernel.
func (g *Guard) Serve(ctx context.Context, l net.Listener) error {
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	s := &http.Server{Handler: g, Protocols: &protocols, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10,
		BaseContext: func(net.Listener) context.Context { return ctx },
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			if w, ok := c.(*watched); ok {
				return context.WithValue(ctx, callerKey{}, w)
			}
			return ctx
		},
		ConnState: func(c net.Conn, to http.ConnState) {
			// The answer is out; a connection that left HTTP never gets here.
			if w, ok := c.(*watched); ok && to == http.StateIdle {
				w.asked.Store(false)
			}
		},
		DisableGeneralOptionsHandler: true,
	}
	stop := context.AfterFunc(ctx, func() { s.Close() })
	defer stop()
	err := s.Serve(&watchedListener{Listener: l, guard: g, ctx: ctx, places: make(chan struct{}, MaxCallers), others: make(chan struct{}, maxOthers)})
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// body reads a body whose length checkHeaders has seen.
func (c *call) body() ([]byte, error) {
	http.NewResponseController(c.w).SetReadDeadline(time.Now().Add(10 * time.Second))
	b := make([]byte, c.r.ContentLength)
	if _, err := io.ReadFull(c.r.Body, b); err != nil {
		return nil, refuse(ReasonLength, "the body ends early: %v", err)
	}
	return b, nil
}
