package bypass

import (
	"context"
	"os"
	"strings"
	"time"

	"portcullis/internal/translog"
	"portcullis/verifier/record"
)

// Run goes every way and looks for its refusal: in what the guard tells, and in the
// end in the log, as an auditor reads it. each may be nil.
func (r *Rig) Run(ctx context.Context, attacks []Attack, each func(Result)) ([]Result, error) {
	var out []Result
	for _, a := range attacks {
		out = append(out, r.try(ctx, a))
	}
	counted, err := r.audit()
	if err != nil {
		return out, err
	}
	need := map[string]int64{}
	for i := range out {
		need[out[i].Reason]++
		if out[i].Logged && counted[out[i].Reason] < need[out[i].Reason] {
			out[i].Logged, out[i].Detail = false, "the log has fewer refusals for this reason than there were"
		}
		if each != nil {
			each(out[i])
		}
	}
	return out, nil
}

// settle is how long the guard may take to write down what it refused.
const settle = 5 * time.Second

func (r *Rig) try(ctx context.Context, a Attack) Result {
	mark, began := r.events.mark(), time.Now()
	r.note = ""
	err := a.Try(ctx, r)
	out := Result{Attack: a.Name, Reason: a.Reason, Refused: err == nil, Note: r.note, Seconds: time.Since(began).Seconds()}
	if err != nil {
		out.Detail = err.Error()
	}
	if out.Logged = r.events.wait(ctx, mark, settle, func(e map[string]any) bool { return e["event"] == "guard.refused" && e["reason"] == a.Reason }); !out.Logged {
		out.Detail += " told were " + strings.Join(r.events.reasons(mark), " ")
	}
	return out
}

// audit closes the log and reads it as another machine would: how many refusals it
// has of each reason.
func (r *Rig) audit() (map[string]int64, error) {
	r.cancel()
	r.work.Wait()
	if err := r.log.Close(); err != nil {
		return nil, err
	}
	r.log = nil
	key, err := record.Verifier(r.logKey)
	if err != nil {
		return nil, err
	}
	files := os.DirFS(r.logDir)
	reader, err := translog.NewReader(files, key)
	if err != nil {
		return nil, err
	}
	out := map[string]int64{}
	_, err = record.Audit(reader, key, record.AuditOptions{Files: files, Each: func(_ int64, e *record.Entry) error {
		if e.Refusal != nil {
			out[e.Refusal.Reason] += e.Refusal.Count
		}
		return nil
	}})
	return out, err
}
