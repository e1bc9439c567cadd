package services

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"portcullis/internal/clock"
	"portcullis/internal/event"
	"portcullis/verifier/declared"
	"portcullis/verifier/engine"
	"portcullis/verifier/guard"
)

// Times of the keeper.
const (
	firstWait = time.Second            // before a service that ended is started again; doubled each time
	lastWait  = time.Minute            // the most of it
	steady    = time.Minute            // who ran that long begins at firstWait again
	readyIn   = 30 * time.Second       // then it is told that it does not answer
	tellsIn   = time.Minute            // so long a fit engine may fail to say how one container stands
	answersIn = 10 * time.Second       // and so long it may take for one answer: it may hang on that container
	lookEvery = 200 * time.Millisecond // at a socket that is to answer, and for a fit engine
	askAgain  = 30 * time.Second       // for what was refused, where the log does not change
	grace     = 5 * time.Second        // for the last work of one that is ended
	endsIn    = 30 * time.Second       // and so long the engine may take beyond it
)

// Keeper keeps the services running.
type Keeper struct {
	services []Service
	guard    Guard
	log      Approvals
	clock    clock.Clock
	events   *event.Writer

	mu     sync.Mutex
	status map[string]*declared.Status
}

// New makes a keeper of services, which are in the order in which they start.
func New(services []Service, g Guard, log Approvals, c clock.Clock, events *event.Writer) *Keeper {
	k := &Keeper{services: services, guard: g, log: log, clock: c, events: events, status: map[string]*declared.Status{}}
	for _, s := range services {
		k.status[s.Purpose] = &declared.Status{Service: declared.Name(s.Purpose), State: declared.StateWaiting, Since: c.Now()}
	}
	return k
}

// Run keeps the services until ctx ends, and leaves them running.
func (k *Keeper) Run(ctx context.Context) error {
	if len(k.services)+len(k.guard.Owned()) == 0 {
		return nil
	}
	k.fit(ctx)
	var all sync.WaitGroup
	told := map[string]string{}
	// Beside the services: each may take a while, and none of them waits for one.
	all.Go(func() {
		for k.strangers(ctx, told) && k.sleep(ctx, askAgain) {
		}
	})
	before := make(chan struct{})
	close(before)
	for _, s := range k.services {
		up := make(chan struct{})
		run := &one{Keeper: k, s: s, up: sync.OnceFunc(func() { close(up) })}
		wait := before
		all.Go(func() {
			select {
			case <-ctx.Done():
			case <-wait:
				run.keep(ctx)
			}
		})
		before = up
	}
	all.Wait()
	return nil
}

// Status of all services, in their order.
func (k *Keeper) Status() []declared.Status {
	k.mu.Lock()
	defer k.mu.Unlock()
	out := []declared.Status{}
	for _, s := range k.services {
		out = append(out, *k.status[s.Purpose])
	}
	return out
}

// fit waits for an engine that starts containers.
func (k *Keeper) fit(ctx context.Context) {
	for k.guard.Fit() != nil && k.sleep(ctx, lookEvery) {
	}
}

// sleep is false when ctx has ended.
func (k *Keeper) sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
	case <-k.clock.After(d):
	}
	return ctx.Err() == nil
}

// strangers ends services that a former configuration named, and tells whether one is left. told is
// why each could not be ended, by its container: that is said once, and that it has gone in the end.
func (k *Keeper) strangers(ctx context.Context, told map[string]string) (left bool) {
	for _, o := range k.guard.Owned() {
		k.mu.Lock()
		_, known := k.status[o.Purpose]
		k.mu.Unlock()
		if known || ctx.Err() != nil {
			continue
		}
		err := k.endOwn(ctx, o.ID, grace)
		reason := guard.Reason(err)
		left = left || err != nil
		if ctx.Err() == nil && (err == nil || told[o.ID] != reason) {
			k.stopped(o, err)
		}
		told[o.ID] = reason
	}
	return left
}

// endOwn ends a container, or gives up: an engine that hangs on one must not keep the others waiting.
func (k *Keeper) endOwn(ctx context.Context, id string, grace time.Duration) error {
	ctx, done := context.WithTimeout(ctx, grace+endsIn)
	defer done()
	return k.guard.EndOwn(ctx, id, grace)
}

func (k *Keeper) stopped(o guard.Owned, err error) {
	f := event.Fields{"service": declared.Name(o.Purpose), "container": o.ID}
	if err != nil {
		f["failed"] = err.Error()
	}
	k.events.Emit("service.stopped", f)
}

// one keeps one service.
type one struct {
	*Keeper
	s       Service
	offered bool
	ran     string // the container that was ready last
	up      func() // the next one may start; called when this one is ready, rests, or cannot be started
}

func (o *one) set(state, container, reason, detail string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	st := o.status[o.s.Purpose]
	if st.State != state {
		st.Since = o.clock.Now()
	}
	if state == declared.StateStarting {
		st.Starts++
	}
	st.State, st.Container, st.Reason, st.Detail = state, container, reason, detail
}

func (o *one) tell(name string, f event.Fields) {
	f["service"] = declared.Name(o.s.Purpose)
	o.events.Emit(name, f)
}

// keep starts the service, and starts it again, until ctx ends.
func (o *one) keep(ctx context.Context) {
	wait := firstWait
	id := o.adopt(ctx)
	began := o.clock.Now()
	for ctx.Err() == nil {
		if id == "" {
			if id = o.start(ctx); id == "" {
				continue
			}
			began = o.clock.Now()
		}
		at, err := o.lasts(ctx, id)
		if ctx.Err() != nil {
			return
		}
		if o.clock.Now().Sub(began) >= steady {
			wait = firstWait
		}
		if o.ended(ctx, id, wait, at, err) {
			wait = min(2*wait, lastWait)
		} else {
			wait = firstWait
		}
		id = ""
	}
}

// lasts returns when a container does not run any more, and how it stands then: it is gone
// (engine.ErrNotFound), or that cannot be known (errUnknown).
func (o *one) lasts(ctx context.Context, id string) (engine.Standing, error) {
	for {
		if at, err := o.ready(ctx, id); err != nil || !at.Running {
			return at, err
		}
		if o.guard.Ended(ctx, id) != nil && !o.owned(id) {
			return engine.Standing{}, engine.ErrNotFound // the guard has removed it
		}
		// While the engine is away it is asked for again and again; where waiting is what fails,
		// and may for ever, what counts is what the engine says when it is asked.
		if at, err := o.standing(ctx, id); err != nil || !at.Running {
			return at, err
		}
		if !o.sleep(ctx, lookEvery) {
			return engine.Standing{}, ctx.Err()
		}
	}
}

func (o *one) owned(id string) bool {
	for _, c := range o.guard.Owned() {
		if c.ID == id {
			return true
		}
	}
	return false
}

// adopt finds the service's container of a former life. One that would be made otherwise
// now is ended, and so is one of which a fit engine cannot tell whether it runs.
func (o *one) adopt(ctx context.Context) string {
	for _, c := range o.guard.Owned() {
		if c.Purpose != o.s.Purpose {
			continue
		}
		at, err := o.standing(ctx, c.ID)
		if ctx.Err() != nil {
			return ""
		}
		if err == nil && at.Running && c.Name == o.s.Name && c.Slice == o.s.Slice && c.Journal == o.s.Journal && c.Profile.Covers(&o.s.Profile) == nil && o.s.Profile.Covers(&c.Profile) == nil {
			o.set(declared.StateRunning, c.ID, "", "")
			o.tell("service.adopted", event.Fields{"container": c.ID})
			return c.ID
		}
		o.stopped(c, o.endOwn(ctx, c.ID, grace))
	}
	return ""
}

// errUnknown: what runs in a container cannot be known, and the engine is fit.
var errUnknown = errors.New("the engine does not tell how the container stands")

// standing asks until the engine has an answer: how the container stands, or that there is
// none. One that is away or starts anew says nothing about what runs; one that is fit,
// and fails for this container only, is not asked for ever (errUnknown): it is told, and the
// services behind this one are not kept waiting.
func (o *one) standing(ctx context.Context, id string) (engine.Standing, error) {
	for fit := o.clock.Now(); ; {
		at, err := o.ask(ctx, id, &fit)
		if !errors.Is(err, errAgain) || !o.sleep(ctx, lookEvery) {
			return at, err
		}
	}
}

// errAgain: the engine did not answer, and has to be asked again.
var errAgain = errors.New("no answer")

// ask asks once; the engine has been fit, and has told nothing, since fit.
func (o *one) ask(ctx context.Context, id string, fit *time.Time) (engine.Standing, error) {
	question, done := context.WithTimeout(ctx, answersIn)
	at, err := o.guard.Standing(question, id)
	done()
	now := o.clock.Now()
	switch {
	case err == nil || errors.Is(err, engine.ErrNotFound):
		*fit = now
		return at, err
	case o.guard.Fit() != nil:
		*fit = now
	case now.Sub(*fit) >= tellsIn:
		err = fmt.Errorf("%w: %w", errUnknown, err)
		o.set(declared.StateFailed, id, ReasonUnknown, err.Error())
		o.tell("service.unknown", event.Fields{"container": id, "reason": ReasonUnknown, "detail": err.Error()})
		o.up()
		return at, err
	}
	return at, fmt.Errorf("%w: %w", errAgain, err)
}

// start makes the container; "" where that has to be tried again.
func (o *one) start(ctx context.Context) string {
	o.fit(ctx)
	if ctx.Err() != nil {
		return ""
	}
	if o.s.Offer != nil && !o.offered {
		o.offered = true
		if err := o.s.Offer(); err != nil {
			o.tell("service.refused", event.Fields{"reason": guard.Reason(err), "detail": err.Error()})
		}
	}
	changed := o.log.Changed() // first: what comes meanwhile is seen
	if answers(o.s.Socket) && !o.cleared(ctx) {
		return ""
	}
	if answers(o.s.Socket) {
		if o.was(ReasonElsewhere) {
			o.tell("service.elsewhere", event.Fields{"reason": ReasonElsewhere, "detail": "something answers at " + o.s.Socket})
		}
		o.set(declared.StateElsewhere, "", ReasonElsewhere, "something answers at "+o.s.Socket)
		o.up()
		o.sleep(ctx, firstWait)
		return ""
	}
	id, err := o.guard.StartOwn(ctx, o.s.Own)
	if guard.Reason(err) == guard.ReasonImage && o.s.Archive != "" {
		if err = o.guard.ImportOwn(ctx, o.s.Purpose, o.s.Archive); err == nil {
			id, err = o.guard.StartOwn(ctx, o.s.Own)
		}
	}
	if err == nil {
		o.set(declared.StateStarting, id, "", "")
		return id
	}
	reason := guard.Reason(err)
	if ctx.Err() != nil || reason == guard.ReasonUnfit {
		return ""
	}
	if o.was(reason) {
		f := event.Fields{"reason": reason, "detail": err.Error()}
		if lerr := o.guard.Refused(o.s.Own, err); lerr != nil {
			f["failed"] = lerr.Error()
		}
		o.tell("service.refused", f)
	}
	o.set(declared.StateRefused, "", reason, err.Error())
	o.up()
	again := askAgain
	if reason == guard.ReasonEngine {
		again = firstWait
	}
	select {
	case <-ctx.Done():
	case <-changed:
	case <-o.clock.After(again):
	}
	return ""
}

// cleared ends what is left of the service itself, which is nobody else at its socket: a
// container that could not be ended before, or of which nothing was known.
func (o *one) cleared(ctx context.Context) bool {
	for _, c := range o.guard.Owned() {
		if c.Purpose != o.s.Purpose {
			continue
		}
		err := o.endOwn(ctx, c.ID, grace)
		if ctx.Err() != nil {
			return false
		}
		if err == nil {
			o.tell("service.stopped", event.Fields{"container": c.ID})
			continue
		}
		if reason := guard.Reason(err); o.was(reason) {
			o.tell("service.stopped", event.Fields{"container": c.ID, "failed": err.Error()})
			o.set(declared.StateFailed, c.ID, reason, "it cannot be ended: "+err.Error())
		}
		o.up()
		o.sleep(ctx, firstWait)
		return false
	}
	return true
}

// was tells whether reason is another one than before.
func (o *one) was(reason string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.status[o.s.Purpose].Reason != reason
}

// ready waits until the service answers at its socket, or its container does not run, and
// tells how that stands as lasts does.
func (o *one) ready(ctx context.Context, id string) (engine.Standing, error) {
	began := o.clock.Now()
	fit := began
	for late := false; !answers(o.s.Socket); {
		at, err := o.ask(ctx, id, &fit)
		if err == nil && !at.Running || err != nil && !errors.Is(err, errAgain) {
			return at, err
		}
		if !late && o.guard.Fit() == nil && o.clock.Now().Sub(began) >= readyIn {
			late = true
			o.set(declared.StateStarting, id, ReasonSilent, "nothing answers at "+o.s.Socket)
			o.tell("service.silent", event.Fields{"container": id, "reason": ReasonSilent, "detail": "nothing answers at " + o.s.Socket})
			o.up()
		}
		if !o.sleep(ctx, lookEvery) {
			return at, ctx.Err()
		}
	}
	// Once of a container: while the engine is away it is asked for again and again.
	if o.ran != id {
		o.ran = id
		o.tell("service.ready", event.Fields{"container": id, "ms": o.clock.Now().Sub(began).Milliseconds()})
	}
	o.set(declared.StateRunning, id, "", "")
	o.up()
	return engine.Standing{Running: true}, nil
}

// ended takes note of the end of a container as lasts has told it, and waits: for the bell, or
// for its turn. failed is false for one that was done.
func (o *one) ended(ctx context.Context, id string, wait time.Duration, at engine.Standing, err error) (failed bool) {
	if errors.Is(err, errUnknown) {
		o.sleep(ctx, wait)
		return true
	}
	if o.s.Bell != nil && err == nil && at.Exit == o.s.RestExit {
		o.rest(ctx, id)
		return false
	}
	detail := "its container is gone"
	fields := event.Fields{"container": id, "reason": ReasonEnded, "again_ms": wait.Milliseconds()}
	if err == nil {
		detail, fields["exit"] = o.guard.LastWords(ctx, id), at.Exit
	}
	fields["detail"] = detail
	o.tell("service.ended", fields)
	o.set(declared.StateFailed, "", ReasonEnded, detail)
	o.up()
	o.sleep(ctx, wait)
	return true
}

// rung is what a bell returned.
type rung struct {
	why string
	err error
}

// rest keeps a service that is done stopped until its bell rings. The bell is there before
// the container goes: an engine takes its time for that, and who asks meanwhile would find nobody.
func (o *one) rest(ctx context.Context, id string) {
	heard := make(chan rung, 1)
	go func() {
		why, err := o.s.Bell(ctx)
		heard <- rung{why, err}
	}()
	if err := o.endOwn(ctx, id, 0); err != nil {
		o.tell("service.stopped", event.Fields{"container": id, "failed": err.Error()})
	}
	o.set(declared.StateResting, "", "", "")
	o.tell("service.resting", event.Fields{"container": id})
	o.up()
	bell := <-heard
	if ctx.Err() != nil {
		return
	}
	f := event.Fields{"why": bell.why}
	if err := bell.err; err != nil {
		// It cannot be heard whether it is wanted: so it is.
		f["failed"] = err.Error()
		o.sleep(ctx, firstWait)
	}
	o.tell("service.wanted", f)
}
