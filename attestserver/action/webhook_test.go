package action

import (
	"crypto/tls"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"portcullis/attestserver/policy"
)

const secretText = "a secret of more than thirty-two bytes"

func secretFile(t *testing.T, text string, mode os.FileMode) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(file, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(file, mode); err != nil {
		t.Fatal(err)
	}
	return file
}

// receiver is the operator's end: it answers with codes, then 204.
type receiver struct {
	mu    sync.Mutex
	codes []int
	got   []*Message
	bad   []error
	now   func() time.Time
}

func (r *receiver) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	body, _ := io.ReadAll(q.Body)
	m, err := Verify([]byte(secretText), q.Header, body, r.now())
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil {
		r.bad = append(r.bad, err)
	}
	r.got = append(r.got, m)
	if len(r.codes) > 0 {
		code := r.codes[0]
		r.codes = r.codes[1:]
		w.Header().Set("Location", "/elsewhere")
		w.WriteHeader(code)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func target(t *testing.T, url, ca string) *Target {
	t.Helper()
	x, err := NewTarget("ops", url, secretFile(t, secretText+"\n", 0o600), ca)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

func TestWebhookIsSignedAndRetriedUntilItIsTaken(t *testing.T) {
	r := newRig()
	in := &receiver{codes: []int{500, 302, 404, 429}, now: r.clock.Now}
	s := httptest.NewServer(in)
	defer s.Close()
	e := r.engine(t, filepath.Join(t.TempDir(), "j"), func(o *Options) { o.Webhooks = []*Target{target(t, s.URL+"/hook?token=x", "")} })
	e.fire(policy.Webhook)
	if end := e.ends(1)[0]; end.Result != ResultDone || end.Detail != "attempt 5" || end.Target != "ops" {
		t.Errorf("%+v", end)
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	if len(in.got) != 5 || len(in.bad) != 0 {
		t.Fatalf("%d messages, refused: %v", len(in.got), in.bad)
	}
	for _, m := range in.got {
		if m.ID != in.got[0].ID || m.Rule != "r" || m.Session != one || m.Claims.Findings[0].Reason != "ktext-page" {
			t.Errorf("%+v", m)
		}
	}
}

func TestWebhookOverTLSBelievesTheConfiguredAuthorityOnly(t *testing.T) {
	r := newRig()
	in := &receiver{now: r.clock.Now}
	s := httptest.NewUnstartedServer(in)
	s.TLS = &tls.Config{MinVersion: tls.VersionTLS13}
	s.Config.ErrorLog = nil
	s.StartTLS()
	defer s.Close()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := target(t, s.URL, ca).post(t.Context(), "id", []byte("{}"), r.clock.Now()); err != nil {
		t.Error(err)
	}
	if err := target(t, s.URL, "").post(t.Context(), "id", []byte("{}"), r.clock.Now()); err == nil {
		t.Error("a certificate that nobody vouches for is believed")
	}
}

// A receiver refuses what was changed, is old, or carries another id than it says.
func TestReceiverRefusesForgedAndOldMessages(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	body := []byte(`{"schema":"` + WebhookSchema + `","id":"i","claims":{"state":"suspect"}}`)
	headers := func(id string, at time.Time, sign string) http.Header {
		h := http.Header{}
		h.Set(HeaderID, id)
		h.Set(HeaderTimestamp, fmt.Sprint(at.Unix()))
		h.Set(HeaderSignature, sign)
		return h
	}
	good := Sign([]byte(secretText), "i", now.Unix(), body)
	if _, err := Verify([]byte(secretText), headers("i", now, good), body, now); err != nil {
		t.Fatal(err)
	}
	old := now.Add(-6 * time.Minute)
	for name, x := range map[string]struct {
		h    http.Header
		body []byte
		key  string
	}{
		"body changed":      {headers("i", now, good), append(body[:len(body)-1:len(body)-1], ' ', '}'), secretText},
		"time changed":      {headers("i", now.Add(time.Second), good), body, secretText},
		"id changed":        {headers("j", now, good), body, secretText},
		"another secret":    {headers("i", now, good), body, secretText + "x"},
		"replayed later":    {headers("i", old, Sign([]byte(secretText), "i", old.Unix(), body)), body, secretText},
		"id of another one": {headers("j", now, Sign([]byte(secretText), "j", now.Unix(), body)), body, secretText},
		"no headers":        {http.Header{}, body, secretText},
		"not JSON":          {headers("i", now, Sign([]byte(secretText), "i", now.Unix(), []byte("x"))), []byte("x"), secretText},
	} {
		if _, err := Verify([]byte(x.key), x.h, x.body, now); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestTargetsAreChecked(t *testing.T) {
	good := secretFile(t, secretText, 0o600)
	for name, x := range map[string][3]string{
		"not a URL":             {"::", good, ""},
		"another scheme":        {"ftp://10.0.0.1/", good, ""},
		"user in the address":   {"https://u:p@ops.example/", good, ""},
		"no host":               {"https:///x", good, ""},
		"no secret":             {"https://ops.example/", good + "x", ""},
		"secret that all read":  {"https://ops.example/", secretFile(t, secretText, 0o644), ""},
		"short secret":          {"https://ops.example/", secretFile(t, "short", 0o600), ""},
		"long secret":           {"https://ops.example/", secretFile(t, strings.Repeat("x", MaxSecret+1), 0o600), ""},
		"secret is a directory": {"https://ops.example/", t.TempDir(), ""},
		"no authority":          {"https://ops.example/", good, good},
	} {
		_, err := NewTarget("ops", x[0], x[1], x[2])
		if err == nil {
			t.Errorf("%s: accepted", name)
		} else if strings.Contains(err.Error(), secretText) {
			t.Errorf("%s: the error tells the secret: %v", name, err)
		}
	}
	x := target(t, "https://ops.example/", "")
	if s := fmt.Sprintf("%v %+v %s", x, x, x); strings.Contains(s, "secret") {
		t.Errorf("printed: %s", s)
	}
}

// Plain http stays in the operator's own network, whatever the name server says.
func TestPlainHTTPLeavesTheNetworkNever(t *testing.T) {
	for address, want := range map[string]error{"10.1.2.3:80": nil, "192.168.0.9:8080": nil, "127.0.0.1:1": nil, "[fd00::1]:80": nil, "[fe80::1]:80": nil,
		"203.0.113.9:80": errPublic, "8.8.8.8:80": errPublic, "[2001:db8::1]:80": errPublic, "[::ffff:8.8.8.8]:80": errPublic} {
		if err := ownNetwork("tcp", address, nil); !errors.Is(err, want) {
			t.Errorf("%s: %v", address, err)
		}
	}
	if err := target(t, "http://203.0.113.9/", "").post(t.Context(), "i", nil, time.Now()); !errors.Is(err, errPublic) {
		t.Errorf("posted to a public address: %v", err)
	}
}

func TestWebhookThatNobodyTakesIsGivenUpAfterADay(t *testing.T) {
	r := newRig()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503) }))
	defer s.Close()
	e := r.engine(t, filepath.Join(t.TempDir(), "j"), func(o *Options) { o.Webhooks = []*Target{target(t, s.URL, "")} })
	e.fire(policy.Webhook)
	if end := e.ends(1)[0]; end.Result != ResultFailed || end.Reason != ReasonUndelivered || !strings.Contains(end.Detail, "503") {
		t.Errorf("%+v", end)
	}
}

func TestWebhookOfAnEarlierConfiguration(t *testing.T) {
	r := newRig()
	path := filepath.Join(t.TempDir(), "j")
	l, err := openLedger(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.write(Record{Time: time.Now().UTC().Format(timeForm), ID: ID{1}.String(), State: stateBegun, Action: policy.Webhook, Target: "gone", Claims: &policy.Claims{State: "suspect"}}); err != nil {
		t.Fatal(err)
	}
	l.journal.Close()
	e := r.engine(t, path, nil)
	if end := e.ends(1)[0]; end.Reason != ReasonNoTarget {
		t.Errorf("%+v", end)
	}
}

func FuzzVerify(f *testing.F) {
	f.Add("i", int64(0), []byte(`{"schema":"`+WebhookSchema+`","id":"i"}`))
	f.Fuzz(func(t *testing.T, id string, at int64, body []byte) {
		h := http.Header{}
		h.Set(HeaderID, id)
		h.Set(HeaderTimestamp, fmt.Sprint(at))
		h.Set(HeaderSignature, Sign([]byte(secretText), id, at, body))
		if m, err := Verify([]byte(secretText), h, body, time.Unix(at, 0)); err == nil && m.ID != id {
			t.Fatalf("%+v", m)
		}
	})
}
