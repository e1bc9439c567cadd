package tamper

import (
	"context"
	"errors"
	"fmt"
	"time"

	"portcullis/lab"
	"portcullis/lab/proxy"
)

// proxyDir is where the two halves of a proxied agent leave their files, on each PC.
const proxyDir = "/run/tamper-p"

// halves are the program in the agent's place and, on the second PC, the one that answers.
const (
	besideHalf = "mkdir -p " + proxyDir + "; " + hpcLab + " answer " + proxyDir + " >/run/tamper-answer 2>&1 </dev/null &"
	askedHalf  = "mkdir -p " + proxyDir + "; " + hpcLab + " proxy $(pgrep -o hpc-agent) " + proxyDir + " >/run/tamper-proxy 2>&1 </dev/null & p=$!; " +
		"while [ ! -s /run/tamper-proxy ] && kill -0 $p 2>/dev/null; do sleep 0.1; done; grep -q ready /run/tamper-proxy || { cat /run/tamper-proxy >&2; exit 1; }"
)

// carryPause is between two looks for a question.
const carryPause = 50 * time.Millisecond

// carry brings the questions of one PC to the other and its answers back until ctx ends:
// it is the attacker's own line between them, of which the Pi knows nothing.
func carry(ctx context.Context, asked, beside *lab.Lab) error {
	for ctx.Err() == nil {
		r, err := asked.Exec(ctx, "/bin/sh", "-c", "cd "+proxyDir+" && cat "+proxy.Question+" && rm "+proxy.Question)
		switch {
		case err != nil:
			return unlessCut(ctx, err)
		case r.Exit != 0:
			select {
			case <-ctx.Done():
			case <-time.After(carryPause):
			}
			continue
		}
		r, err = beside.ExecIn(ctx, r.Stdout, shellLimit, "/bin/sh", "-ec", "cd "+proxyDir+"; cat > in; mv in "+proxy.Question+
			"; while [ ! -e "+proxy.Answer+" ]; do sleep 0.05; done; cat "+proxy.Answer+"; rm "+proxy.Answer)
		if err != nil {
			return unlessCut(ctx, err)
		}
		if r.Exit != 0 {
			return fmt.Errorf("the second PC: %s%s", r.Stderr, r.Error)
		}
		if _, err = asked.ExecIn(ctx, r.Stdout, shellLimit, "/bin/sh", "-ec", "cd "+proxyDir+"; cat > in; mv in "+proxy.Answer); err != nil {
			return unlessCut(ctx, err)
		}
	}
	return nil
}

// unlessCut is err, but of a line that was cut.
func unlessCut(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// beside commits an attack for which a second PC is needed: of the same image, with a
// Pi of its own that trusts it.
func (w *runner) beside(ctx context.Context, a Attack) (err error) {
	w.say("round %d: %s", w.round, a.Name)
	second, err := lab.Start(ctx, lab.Options{Name: w.Name + "2", State: w.State, Builder: w.Builder})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, second.Close()) }()
	second.Hardware = w.parts()
	w.say("round %d: a second PC boots", w.round)
	if _, err := second.Boot(ctx, bootLimit); err != nil {
		return fmt.Errorf("the second PC: %w", err)
	}
	if _, err := w.boot(ctx); err != nil {
		return err
	}
	defer w.l.PowerCut()
	if _, err := w.l.Log.Wait(ctx, w.l.Log.Mark(), lab.Is("evidence")); err != nil {
		return fmt.Errorf("before %s: %w", a.Name, err)
	}
	if err := shell(ctx, second, a.Second); err != nil {
		return fmt.Errorf("%s: the second PC: %w", a.Name, err)
	}
	line, cut := context.WithCancel(ctx)
	carried := make(chan error, 1)
	defer func() {
		cut()
		err = errors.Join(err, <-carried)
	}()
	began := time.Now()
	mark, _, err := a.commit(ctx, w.l)
	go func() { carried <- carry(line, w.l, second) }()
	if err != nil {
		w.tell(Result{Attack: a.Name, Outcome: Failed, Expected: a.expected(), Detail: err.Error()})
		return nil
	}
	limit, cancel := context.WithTimeout(ctx, w.Limit)
	defer cancel()
	w.await(limit, pending{a, mark, began})
	return nil
}
