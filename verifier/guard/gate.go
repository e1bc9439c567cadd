package guard

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"portcullis/internal/event"
	"portcullis/verifier/engine"
	"portcullis/verifier/gate"
	"portcullis/verifier/record"
)

// Where the engine's runtime asks before a program runs (package gate), a start waits for
// that, and not for the engine's work before it: large files are compared while the engine makes the
// container. What must be so before a program runs is so all the same: compared, then permitted in the log,
// then let go. An engine that says it has started what was not let go is one whose runtime does not ask.

// gated are the containers whose start the guard has asked the engine for.
type gated struct {
	mu     sync.Mutex
	starts map[string]*starting
}

// starting is a container on its way.
type starting struct {
	decided chan struct{} // closed once
	why     string        // it does not start; "": it does. Written before decided is closed
	asked   bool          // the gate has been answered; of gated.mu
}

func (g *gated) begin(id string) *starting {
	s := &starting{decided: make(chan struct{})}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.starts[id] = s
	return s
}

// end forgets a start, and tells whether the gate has been answered.
func (g *gated) end(id string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	s := g.starts[id]
	delete(g.starts, id)
	return s.asked
}

// decide answers who waits at the gate, now or later; nil lets go.
func (s *starting) decide(err error) {
	if err != nil {
		reason, detail := reasonOf(err)
		s.why = printable(reason+": "+detail, gate.MaxAnswer)
	}
	close(s.decided)
}

// answer waits for the decision on a container that the gate asks for. A container is let go once.
func (g *gated) answer(ctx context.Context, id string) (why string, err error) {
	g.mu.Lock()
	s := g.starts[id]
	if s == nil || s.asked {
		g.mu.Unlock()
		return "", refuse(ReasonGate, "the guard is not starting container %s", id)
	}
	s.asked = true
	g.mu.Unlock()
	select {
	case <-s.decided:
		return s.why, nil
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

// maxGate is how many may ask at once; more wait. All of them are root.
const maxGate = 64

// ServeGate answers the engine's runtime on l until ctx ends. Options.Gate is for who does.
func (g *Guard) ServeGate(ctx context.Context, l net.Listener) error {
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	var asking sync.WaitGroup
	defer asking.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	places := make(chan struct{}, maxGate)
	for {
		c, err := l.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		places <- struct{}{}
		asking.Go(func() {
			defer func() { <-places }()
			defer c.Close()
			g.atGate(ctx, c)
		})
	}
}

// atGate answers one question. A refusal that no start was told of is written down here.
func (g *Guard) atGate(ctx context.Context, c net.Conn) {
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	c.SetDeadline(time.Now().Add(5 * time.Second))
	var b [gate.QuestionSize]byte
	n, err := io.ReadFull(c, b[:])
	id := ""
	if err == nil {
		id, err = gate.ParseQuestion(b[:])
	}
	if err != nil {
		err = refuse(ReasonGate, "%d bytes are no question: %v", n, err)
	}
	var why string
	if err == nil {
		why, err = g.gated.answer(ctx, id)
	}
	if ctx.Err() != nil {
		return // without an answer it does not start
	}
	if err != nil {
		reason, detail := reasonOf(err)
		why = printable(reason+": "+detail, gate.MaxAnswer)
		if lerr := g.Refuse(record.Refusal{Action: ActionEngine, Reason: reason, Detail: detail, Caller: engineItself}); lerr != nil {
			g.opt.Events.Emit("log.failed", event.Fields{"reason": ReasonLog, "detail": lerr.Error()})
		}
	}
	c.SetDeadline(time.Now().Add(5 * time.Second))
	c.Write(gate.Answer(why)) // who went away does not start it
}

// runtime is what containers are made for: the one that asks, where the engine has it and
// somebody answers.
func (g *Guard) runtime() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.opt.Gate && g.info.Gate {
		return gate.Runtime
	}
	return engine.Runc
}

// startHeld has the engine make a container while the rest of its files is compared, and lets its
// program go when all is well and written down. g.step is held.
func (g *Guard) startHeld(ctx context.Context, id string, rest, permit func() error) error {
	s := g.gated.begin(id)
	made := make(chan error, 1)
	go func() { made <- g.opt.Engine.Start(ctx, id) }()
	err := rest()
	if err == nil {
		err = permit()
	}
	s.decide(err)
	started := <-made
	asked := g.gated.end(id)
	switch {
	case started == nil && err == nil && asked:
		return nil
	case started == nil:
		// Something runs that was not let go.
		if err == nil {
			err = refuse(ReasonGate, "the engine started container %s without asking", id)
		}
		g.end(ctx, id, err)
		g.mu.Lock()
		g.mark("engine-gate", false, "its runtime does not ask before a program runs")
		g.mu.Unlock()
		return err
	case err == nil:
		return started
	}
	return errors.Join(err, g.state.change(func(f *stateFile) {
		if c, ok := f.Containers[id]; ok {
			c.Begun = true
			f.Containers[id] = c
		}
	}))
}
