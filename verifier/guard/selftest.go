package guard

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"time"

	"portcullis/verifier/approval"
	"portcullis/verifier/engine"
	"portcullis/verifier/stamp"
)

// knock is one way to get a program into the engine, and what must be answered.
type knock struct {
	name, method, uri, contentType string
	body                           []byte
	reason                         string
}

// SelfTest tries to get an image that nobody approved into the engine, by every
// way that the engine has, first through the guard and then through the engine's
// own socket. A lock that lets one of them through, and one that answers something
// else than a refusal with the right reason, makes the node unfit: a verifier that
// checks nothing looks exactly like one that has nothing to refuse.
func (g *Guard) SelfTest(ctx context.Context) error {
	bad, id, err := badImage()
	if err != nil {
		return err
	}
	create, err := json.Marshal(map[string]string{"Image": id})
	if err != nil {
		return err
	}
	const tarType, jsonType = "application/x-tar", "application/json"
	knocks := []knock{
		{"load", "POST", "/v1.41/images/load", tarType, bad, approval.ReasonUnapproved},
		{"run", "POST", "/v1.41/containers/create", jsonType, create, ReasonImage},
		{"cp", "PUT", "/v1.41/containers/" + id[7:] + "/archive?path=/", tarType, bad, ReasonEndpoint},
		{"commit", "POST", "/v1.41/commit?container=" + id[7:], jsonType, []byte("{}"), ReasonEndpoint},
		{"build", "POST", "/v1.41/build", tarType, bad, ReasonEndpoint},
		{"import", "POST", "/v1.41/images/create?fromSrc=-", tarType, bad, ReasonEndpoint},
		{"plugin", "POST", "/v1.41/plugins/create?name=x", tarType, bad, ReasonEndpoint},
		{"exec", "POST", "/v1.41/containers/" + id[7:] + "/exec", jsonType, []byte(`{"Cmd":["/probe"]}`), ReasonEndpoint},
	}
	for _, k := range knocks {
		if err := k.refused(ctx, g.opt.Socket, k.reason); err != nil {
			return fmt.Errorf("%s through the guard: %w", k.name, err)
		}
		if err := k.refused(ctx, g.opt.Door, stamp.ReasonMissing); err != nil {
			return fmt.Errorf("%s at the engine: %w", k.name, err)
		}
	}
	switch _, err := g.opt.Engine.Image(ctx, id); {
	case errors.Is(err, engine.ErrNotFound):
		return nil
	case err != nil:
		return err
	}
	return fmt.Errorf("%w: the engine holds the image %s", errUnlocked, id)
}

// errUnlocked is a self-test that has got an answer, and the wrong one. Others were not answered: on
// a busy machine the next one may be.
var errUnlocked = errors.New("not locked")

// testAgain is how long a self-test that was not answered stands.
const testAgain = time.Minute

// refused knocks at socket and wants to hear reason.
func (k knock) refused(ctx context.Context, socket, reason string) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return err
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	// A refusal may come before all is sent: what counts is what is answered.
	fmt.Fprintf(c, "%s %s HTTP/1.1\r\nHost: guard\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n", k.method, k.uri, k.contentType, len(k.body))
	c.Write(k.body)
	a, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return err
	}
	defer a.Body.Close()
	b, err := io.ReadAll(io.LimitReader(a.Body, 64<<10))
	if err != nil {
		return err
	}
	if a.StatusCode < 400 || !strings.Contains(string(b), reason) {
		return fmt.Errorf("%w: answered %s %.200q, not a refusal for %s", errUnlocked, a.Status, b, reason)
	}
	return nil
}

// badImage is a sound image that nobody can have approved: its bytes are new.
func badImage() (archive []byte, id string, err error) {
	layer, err := tarOf(map[string][]byte{"probe": []byte(rand.Text())}, "probe")
	if err != nil {
		return nil, "", err
	}
	config, err := json.Marshal(map[string]any{"architecture": runtime.GOARCH, "os": "linux", "config": map[string]any{"Entrypoint": []string{"/probe"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{digestOf(layer)}}})
	if err != nil {
		return nil, "", err
	}
	id = digestOf(config)
	name, layerName := id[7:]+".json", digestOf(layer)[7:]+"/layer.tar"
	manifest, err := json.Marshal([]map[string]any{{"Config": name, "RepoTags": []string{"portcullis/self-test:bad"}, "Layers": []string{layerName}}})
	if err != nil {
		return nil, "", err
	}
	archive, err = tarOf(map[string][]byte{name: config, layerName: layer, "manifest.json": manifest}, name, layerName, "manifest.json")
	return archive, id, err
}

func tarOf(files map[string][]byte, order ...string) ([]byte, error) {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, name := range order {
		if err := w.WriteHeader(&tar.Header{Name: name, Size: int64(len(files[name])), Mode: 0o755}); err != nil {
			return nil, err
		}
		if _, err := w.Write(files[name]); err != nil {
			return nil, err
		}
	}
	return out.Bytes(), w.Close()
}

func digestOf(b []byte) string {
	s := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(s[:])
}
