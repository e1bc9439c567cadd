package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// The door for strangers is there where the configuration opens it, has one question
// and nothing else, and has an end to how many stand in it.
func TestStrangersReachTheirDoorOnly(t *testing.T) {
	l, err := net.Listen("tcp", "127.1.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	file := configFile(t)
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, fmt.Appendf(b, "  ask_listen: %q\n", address), 0o600); err != nil {
		t.Fatal(err)
	}
	start(t, file)
	for limit := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) { // it may be ready for agents first
		c, err := net.Dial("tcp", address)
		if err == nil {
			c.Close()
			break
		}
		if time.Now().After(limit) {
			t.Fatal(err)
		}
	}
	curl := func(path, body string) string {
		t.Helper()
		c := exec.Command("curl", "-s", "-m", "20", "-w", " %{http_code}", "--data-binary", "@-", "http://"+address+path)
		c.Stdin = strings.NewReader(body)
		out, err := c.Output()
		if err != nil {
			t.Fatalf("curl (package curl): %v", err)
		}
		return string(out)
	}
	if got := curl("/portcullis.v1.Attest/ListPCs", "{}"); !strings.HasSuffix(got, " 404") {
		t.Errorf("a call of the service: %s", got)
	}
	if got := curl("/attest", `{"nonce":"AAECAwQFBgcICQoLDA0ODw","all":true}`); !strings.Contains(got, "ask-malformed") || !strings.HasSuffix(got, " 400") {
		t.Errorf("an unknown field: %s", got)
	}
	var held []net.Conn
	for range maxOutside {
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		held = append(held, c)
	}
	late, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer late.Close()
	late.SetDeadline(time.Now().Add(3 * time.Second)) // one that is let in waits for 5 s for its header
	if n, err := late.Read(make([]byte, 1)); n != 0 || os.IsTimeout(err) {
		t.Errorf("one more than %d is let in: %v", maxOutside, err)
	}
	for _, c := range held {
		c.Close()
	}
	// The server sees their end a moment later.
	for limit := time.Now().Add(5 * time.Second); time.Now().Before(limit); time.Sleep(5 * time.Millisecond) {
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(200 * time.Millisecond))
		_, err = c.Read(make([]byte, 1))
		c.Close()
		if os.IsTimeout(err) {
			break
		}
	}
	if got := curl("/attest", `{"nonce":"AAECAwQFBgcICQoLDA0ODw"}`); !strings.Contains(got, "ask-no-pc") {
		t.Errorf("after they have gone: %s", got)
	}
}
