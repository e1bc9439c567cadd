package server_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"strings"
	"testing"
	"time"

	"portcullis/attestserver/result"
	"portcullis/internal/clock"
	"portcullis/internal/rpc"
)

// curl is a caller without a line of our code; it returns code and body.
func curl(t *testing.T, url, body string) (string, []byte) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c := exec.CommandContext(ctx, "curl", "-s", "-w", "\n%{http_code}", "-H", "Content-Type: application/json", "--data-binary", "@-", url)
	c.Stdin = strings.NewReader(body)
	out, err := c.Output()
	if err != nil {
		t.Fatalf("curl (package curl): %v", err)
	}
	i := strings.LastIndexByte(string(out), '\n')
	return string(out[i+1:]), out[:i]
}

// A peer asks over plain HTTP. What it gets names its nonce and is signed; the fourth
// question of one address comes too early, while the socket still answers.
func TestPeerAsksWithCurl(t *testing.T) {
	l := newLab(t)
	l.pxed.open(sid)
	l.start()
	l.agent(sid, newKey(t))
	l.awaitState(0, "trusted")
	srv := httptest.NewServer(l.fleet.Outside(clock.Real{}))
	defer srv.Close()
	for path, want := range map[string]string{"/": "404", "/portcullis.v1.Attest/GetVerdict": "404", "/portcullis.v1.Attest/Ask": "404"} {
		if code, _ := curl(t, srv.URL+path, "{}"); code != want {
			t.Errorf("%s answers %s to strangers", path, code)
		}
	}
	n := nonce(t)
	question := `{"nonce":"` + base64.RawURLEncoding.EncodeToString(n) + `","context":"before:task-7","probes":["boot"]}`
	code, body := curl(t, srv.URL+"/attest", question)
	var reply struct{ JWT string }
	if err := json.Unmarshal(body, &reply); code != "200" || err != nil {
		t.Fatalf("%s %s %v", code, body, err)
	}
	c, err := result.Verify([]byte(reply.JWT), l.public(), time.Now(), n)
	if err != nil {
		t.Fatal(err)
	}
	if pc := c.Submods[result.SubmodPC].PC; pc.State != "trusted" || pc.Context != "before:task-7" {
		t.Errorf("%+v", pc)
	}
	if _, err := result.Verify([]byte(reply.JWT), l.public(), time.Now(), nonce(t)); err == nil {
		t.Error("the answer fits the nonce of another")
	}
	for body, reason := range map[string]string{`{"nonce":"AAAAAAAAAAAAAAAAAAAAAAA","root":1}`: "ask-malformed",
		strings.Replace(question, `"boot"`, `"files"`, 1): "ask-probe"} {
		if code, got := curl(t, srv.URL+"/attest", body); code != "400" || !strings.Contains(string(got), reason) {
			t.Errorf("%s: %s %s", body, code, got)
		}
	}
	if code, got := curl(t, srv.URL+"/attest", question); code != "429" || !strings.Contains(string(got), "ask-busy") {
		t.Errorf("the fourth question at once: %s %s", code, got)
	}
	r, err := l.client(rpc.AttestSocket).Post(rpc.BaseURL+"/attest", "application/json", strings.NewReader(question))
	if err != nil || r.StatusCode != http.StatusOK {
		t.Errorf("the socket answers %v %v", r, err)
	}
}

// Each address has its own limit, an IPv6 /64 is one address, and all together have one.
func TestStrangersAreLimited(t *testing.T) {
	now := &still{time.Unix(1_800_000_000, 0)}
	l := newLab(t)
	l.start()
	h := l.fleet.Outside(now)
	ask := func(from string) int {
		w := httptest.NewRecorder()
		r := httptest.NewRequest("POST", "/attest", strings.NewReader("{"))
		r.RemoteAddr = net.JoinHostPort(from, "1000")
		h.ServeHTTP(w, r)
		return w.Code
	}
	for i, want := range []int{400, 400, 400, 429} {
		if got := ask("192.0.2.1"); got != want {
			t.Errorf("question %d of one address: %d, want %d", i, got, want)
		}
	}
	if got := ask("192.0.2.2"); got != 400 {
		t.Errorf("another address: %d", got)
	}
	if got := ask("192.0.2.3"); got != 429 {
		t.Errorf("the fifth at once of all: %d", got)
	}
	now.at = now.at.Add(time.Minute)
	for i, from := range []string{"2001:db8::1", "2001:db8::2", "2001:db8::3", "2001:db8::4"} {
		if got, want := ask(from), []int{400, 400, 400, 429}[i]; got != want {
			t.Errorf("%s of one /64: %d, want %d", from, got, want)
		}
	}
}

// still is a clock that the test moves.
type still struct{ at time.Time }

func (s *still) Now() time.Time                         { return s.at }
func (s *still) After(d time.Duration) <-chan time.Time { return time.After(d) }
