package bypass

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"portcullis/lab/dockerd"
	"portcullis/verifier/approval"
	"portcullis/verifier/engine"
	"portcullis/verifier/gate"
	"portcullis/verifier/guard"
	"portcullis/verifier/stamp"
)

// decided is an attack with an image whose approval does not hold.
func decided(name, reason string, change func(*approval.Approval)) Attack {
	return Attack{"approval-" + name, reason, func(ctx context.Context, r *Rig) error {
		i, err := dockerd.Make("x:1", r.probe, name)
		if err != nil {
			return err
		}
		if err := r.approve(ctx, i, change); err != nil {
			return err
		}
		return r.knock(r.socket, post("POST", "/v1.41/images/load", tarType, string(i.Tar)))
	}}
}

// decisions: images that are sound, and not approved now.
var decisions = []Attack{
	{"approval-none", approval.ReasonUnapproved, func(_ context.Context, r *Rig) error {
		i, err := dockerd.Make("x:1", r.probe, "unapproved")
		if err != nil {
			return err
		}
		return r.knock(r.socket, post("POST", "/v1.41/images/load", tarType, string(i.Tar)))
	}},
	decided("expired", approval.ReasonExpired, func(a *approval.Approval) { a.NotAfter = time.Now().Add(-time.Minute) }),
	decided("not-yet", approval.ReasonNotYet, func(a *approval.Approval) { a.NotBefore = time.Now().Add(time.Minute) }),
	{"approval-older", approval.ReasonOlder, func(ctx context.Context, r *Rig) error {
		was, err := dockerd.Make("x:1", r.probe, "version 1")
		if err != nil {
			return err
		}
		next, err := dockerd.Make("x:2", r.probe, "version 2")
		if err != nil {
			return err
		}
		for n, i := range []dockerd.Image{was, next} {
			if err := r.approve(ctx, i, func(a *approval.Approval) { a.Name, a.Version = "lab-older", uint64(n+1) }); err != nil {
				return err
			}
		}
		return r.knock(r.socket, post("POST", "/v1.41/images/load", tarType, string(was.Tar)))
	}},
	{"approval-of-another-configuration", approval.ReasonDiffers, func(ctx context.Context, r *Rig) error {
		i, err := dockerd.Make("x:1", r.probe, "another configuration")
		if err != nil {
			return err
		}
		if err := r.approve(ctx, i, func(a *approval.Approval) { a.Image.Config = "sha256:" + strings.Repeat("0", 64) }); err != nil {
			return err
		}
		return r.knock(r.socket, post("POST", "/v1.41/images/load", tarType, string(i.Tar)))
	}},
	{"approval-revoked-while-it-runs", approval.ReasonRevoked, func(ctx context.Context, r *Rig) error {
		i, err := dockerd.Make("x:1", r.probe, "revoked")
		if err != nil {
			return err
		}
		if err := r.approve(ctx, i, nil); err != nil {
			return err
		}
		name, err := r.guard.Import(ctx, bytes.NewReader(i.Tar), "lab")
		if err != nil {
			return err
		}
		id, err := r.make(`{"Image":"` + name + `","Cmd":["wait"]}`)
		if err != nil {
			return err
		}
		if err := r.start(id); err != nil {
			return err
		}
		envelope, err := approval.Revocation{Schema: approval.RevocationSchema, Image: i.Config, Why: "lab", Issued: time.Now()}.Sign(r.key)
		if err == nil {
			_, err = r.log.Add(envelope)
		}
		if err != nil {
			return err
		}
		return r.gone(ctx, id)
	}},
}

// direct is an attack on the engine's own socket.
func direct(name, text string) Attack {
	return Attack{"engine-" + name, stamp.ReasonMissing, func(_ context.Context, r *Rig) error { return r.knock(r.daemon.Socket, text) }}
}

// stamped is an attack there with a stamp that was made for something else.
func stamped(name, reason, made string, body stamp.Body, used string, sent []byte) Attack {
	return Attack{"engine-" + name, reason, func(_ context.Context, r *Rig) error {
		s, err := r.press.Make("POST", made, body)
		if err != nil {
			return err
		}
		return r.knock(r.daemon.Socket, request("POST "+used+" HTTP/1.1", fmt.Sprintf("%s: %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n", stamp.Header, s, len(sent)), string(sent)))
	}}
}

// doors: whoever reaches the engine's own socket, which nobody but root can.
var doors = []Attack{
	direct("load", post("POST", "/v1.41/images/load", tarType, "x")),
	direct("run", post("POST", "/v1.41/containers/create", jsonType, create(""))),
	direct("start", request("POST /v1.41/containers/{container}/start HTTP/1.1", "Content-Length: 0\r\n", "")),
	direct("cp", post("PUT", "/v1.41/containers/{container}/archive?path=/", tarType, "x")),
	direct("commit", post("POST", "/v1.41/commit?container={container}", jsonType, "{}")),
	direct("build", post("POST", "/v1.41/build", tarType, "x")),
	direct("import", post("POST", "/v1.41/images/create?fromSrc=-", tarType, "x")),
	direct("plugin", post("POST", "/v1.41/plugins/create?name=evil", tarType, "x")),
	direct("exec", post("POST", "/v1.41/containers/{container}/exec", jsonType, `{"Cmd":["/probe"]}`)),
	direct("session", request("POST /session HTTP/1.1", "Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 0\r\n", "")),
	direct("grpc", request("POST /grpc HTTP/1.1", "Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 0\r\n", "")),
	direct("body-of-1-mib-and-1", post("POST", "/v1.41/containers/create", jsonType, create(`,"Cmd":["`+strings.Repeat("a", 1<<20)+`"]`))),
	// From 29.3.1 on the plugin gets a body up to 4 MiB; what is longer the engine refuses itself.
	direct("body-of-nearly-4-mib", post("POST", "/v1.41/containers/create", jsonType, create(`,"Cmd":["`+strings.Repeat("a", 4<<20-1<<10)+`"]`))),
	direct("body-in-chunks", request("POST /v1.41/containers/create HTTP/1.1", "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n", "2\r\n{}\r\n0\r\n\r\n")),
	stamped("stamp-of-another-request", stamp.ReasonBroken, "/v1.41/containers/json", stamp.NoBody(), "/v1.41/containers/create", []byte("{}")),
	stamped("stamp-of-another-body", stamp.ReasonBody, "/v1.41/containers/create", stamp.Bytes([]byte(`{"Image":"good"}`)), "/v1.41/containers/create", []byte(`{"Image":"evil"}`)),
	stamped("stamp-with-a-hidden-body", stamp.ReasonBody, "/v1.41/containers/create", stamp.Bytes([]byte(`{"Image":"good"}`)), "/v1.41/containers/create",
		[]byte(`{"Image":"evil","Cmd":["`+strings.Repeat("a", 1<<20)+`"]}`)),
	{"engine-stamp-twice", stamp.ReasonUsed, func(_ context.Context, r *Rig) error {
		const uri = "/v1.41/containers/json"
		s, err := r.press.Make("GET", uri, stamp.NoBody())
		if err != nil {
			return err
		}
		again := request("GET "+uri+" HTTP/1.1", stamp.Header+": "+s+"\r\n", "")
		if status, body, err := r.send(r.daemon.Socket, again); err != nil || status != http.StatusOK {
			return fmt.Errorf("the first time: %d %s %v", status, body, err)
		}
		return r.knock(r.daemon.Socket, again)
	}},
}

// gone waits until the engine does not have a container.
func (r *Rig) gone(ctx context.Context, id string) error {
	end := time.Now().Add(10 * time.Second)
	for time.Now().Before(end) && ctx.Err() == nil {
		if _, err := r.door.Resolve(ctx, id); errors.Is(err, engine.ErrNotFound) {
			return nil
		}
		time.Sleep(5 * time.Millisecond)
	}
	return fmt.Errorf("container %s is there after 10 s", id)
}

// idle is nil where nothing of a container runs.
func (r *Rig) idle(ctx context.Context, id string) error {
	s, err := r.door.Standing(ctx, id)
	if err == nil && s.Running {
		err = fmt.Errorf("container %s runs", id)
	}
	return err
}

// askGate asks in the place of the engine's runtime, and wants a refusal.
func (r *Rig) askGate(ctx context.Context, question string) error {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", r.daemon.Gate)
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(c, question); err != nil {
		return err
	}
	answer, err := io.ReadAll(io.LimitReader(c, gate.MaxAnswer))
	if err == nil && !strings.Contains(string(answer), guard.ReasonGate) {
		err = fmt.Errorf("the gate's answer: %q", answer)
	}
	return err
}

// running makes and starts a container through the guard.
func (r *Rig) running() (string, error) {
	id, err := r.make(`{"Image":"{image}","Cmd":["wait"]}`)
	if err == nil {
		err = r.start(id)
	}
	return id, err
}

// post sends a request with a stamp: as somebody who has got hold of the verifier.
func (r *Rig) post(ctx context.Context, uri, body string) error {
	a, err := r.door.Forward(ctx, "POST", uri, []byte(body))
	if err != nil {
		return err
	}
	defer a.Body.Close()
	if a.StatusCode >= 300 {
		return fmt.Errorf("bypass: %s: %s", uri, a.Status)
	}
	return nil
}

// stored is an attack on the engine's store, between the making of a container and
// its start: the image's ID stays what it was. It has an image of its own.
func stored(name string, change func(lower []string, upper string) error) Attack {
	return Attack{"store-" + name, guard.ReasonImageStore, func(ctx context.Context, r *Rig) error {
		// No layer is shared with an image that others use.
		i, err := dockerd.Make("x:1", append(bytes.Clone(r.probe), name...), name)
		if err != nil {
			return err
		}
		if err := r.approve(ctx, i, nil); err != nil {
			return err
		}
		image, err := r.guard.Import(ctx, bytes.NewReader(i.Tar), "lab")
		if err != nil {
			return err
		}
		id, err := r.make(`{"Image":"` + image + `","Cmd":["wait"]}`)
		if err != nil {
			return err
		}
		dirs, err := r.door.Layers(ctx, id)
		if err != nil {
			return err
		}
		if err := change(dirs.Lower, dirs.Upper); err != nil {
			return err
		}
		return r.knock(r.socket, request("POST /v1.41/containers/"+id+"/start HTTP/1.1", "Content-Length: 0\r\n", ""))
	}}
}

// appended makes a file longer by a byte, or makes it.
func appended(path string) error {
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	_, err = f.Write([]byte("x"))
	return errors.Join(err, f.Close())
}

// behind: what came past both locks is found and ended.
var behind = []Attack{
	{"behind-container", guard.ReasonContainer, func(ctx context.Context, r *Rig) error {
		i, err := r.door.Image(ctx, r.image)
		if err != nil {
			return err
		}
		p := profile
		p.AnyCommand, p.Command = false, []string{"/probe", "wait"}
		// With the runtime that asks nobody.
		id, err := r.door.Create(ctx, engine.Spec{Image: i, Profile: p, Runtime: engine.Runc})
		if err != nil {
			return err
		}
		// The guard may end it before the engine has started it, which then is an error of the engine's.
		err = r.door.Start(ctx, id)
		if gone := r.gone(ctx, id); gone != nil {
			return errors.Join(gone, err)
		}
		return nil
	}},
	{"gate-start-of-a-made-one", guard.ReasonGate, func(ctx context.Context, r *Rig) error {
		id, err := r.make(`{"Image":"{image}","Cmd":["wait"]}`)
		if err != nil {
			return err
		}
		if err := r.door.Start(ctx, id); err == nil || !strings.Contains(err.Error(), guard.ReasonGate) {
			return fmt.Errorf("the engine's answer: %w", err)
		}
		return r.idle(ctx, id)
	}},
	{"gate-question-of-another", guard.ReasonGate, func(ctx context.Context, r *Rig) error {
		return r.askGate(ctx, r.container+"\n")
	}},
	{"gate-no-question", guard.ReasonGate, func(ctx context.Context, r *Rig) error {
		return r.askGate(ctx, "../"+r.container[3:]+"\n")
	}},
	{"behind-exec", guard.ReasonProgram, func(ctx context.Context, r *Rig) error {
		id, err := r.running()
		if err != nil {
			return err
		}
		if err := r.post(ctx, "/v1.41/containers/"+id+"/exec", `{"Cmd":["/probe","wait"]}`); err != nil {
			return err
		}
		return r.gone(ctx, id)
	}},
	{"behind-update", guard.ReasonDiffers, func(ctx context.Context, r *Rig) error {
		id, err := r.running()
		if err != nil {
			return err
		}
		// The guard may end the container before the engine has done all of it, which then is an error of the engine's.
		err = r.post(ctx, "/v1.41/containers/"+id+"/update", `{"PidsLimit":100000}`)
		if gone := r.gone(ctx, id); gone != nil {
			return errors.Join(gone, err)
		}
		return nil
	}},
	{"behind-load", guard.ReasonUnknownImage, func(ctx context.Context, r *Rig) error {
		i, err := dockerd.Make("evil:1", r.probe, "behind")
		if err != nil {
			return err
		}
		if err := r.door.Load(ctx, bytes.NewReader(i.Tar)); err != nil {
			return err
		}
		end := time.Now().Add(10 * time.Second)
		for time.Now().Before(end) {
			if _, err := r.door.Image(ctx, i.Name); errors.Is(err, engine.ErrNotFound) {
				return nil
			}
			time.Sleep(5 * time.Millisecond)
		}
		return errors.New("the image is there after 10 s")
	}},
	stored("byte-of-the-program", func(lower []string, _ string) error {
		return appended(filepath.Join(lower[len(lower)-1], "probe"))
	}),
	stored("file-more", func(lower []string, _ string) error { return appended(filepath.Join(lower[1], "evil")) }),
	stored("file-less", func(lower []string, _ string) error { return os.Remove(filepath.Join(lower[1], "mark")) }),
	stored("program-with-another-mode", func(lower []string, _ string) error {
		return os.Chmod(filepath.Join(lower[len(lower)-1], "probe"), os.ModeSetuid|0o755)
	}),
	stored("program-over-the-image", func(lower []string, _ string) error { return appended(filepath.Join(lower[0], "probe")) }),
	stored("program-in-the-container", func(_ []string, upper string) error { return appended(filepath.Join(upper, "probe")) }),
	{"behind-tag-moved", guard.ReasonImage, func(ctx context.Context, r *Rig) error { return r.moveTag(ctx) }},
	// Root has containerd's socket as well: the engine knows nothing of such a container.
	{"containerd-run", guard.ReasonContainer, func(ctx context.Context, r *Rig) error { return r.ctr(ctx, "evil", "evil-in-evil") }},
	{"containerd-run-as-the-engine", guard.ReasonContainer, func(ctx context.Context, r *Rig) error { return r.ctr(ctx, "moby", "evil-in-moby") }},
	{"containerd-run-as-one-that-ended", guard.ReasonContainer, func(ctx context.Context, r *Rig) error { return r.borrowed(ctx) }},
}
