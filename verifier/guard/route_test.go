package guard

import (
	"bufio"
	"net/http"
	"strings"
	"testing"
)

// read makes a request of text as the server does; nil where net/http refuses it.
func read(text string) *http.Request {
	r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(text)))
	if err != nil {
		return nil
	}
	return r
}

func TestFind(t *testing.T) {
	const json = "Content-Type: application/json\r\nContent-Length: 2\r\n"
	for _, c := range []struct{ name, line, headers, reason, uri string }{
		{"ping", "GET /_ping HTTP/1.1", "", "", "/v1.45/_ping"},
		{"the caller's version", "GET /v1.41/version HTTP/1.1", "", "", "/v1.41/version"},
		{"container", "GET /v1.41/containers/abc/json HTTP/1.1", "", "", "/v1.41/containers/abc/json"},
		{"parameters are sorted", "GET /containers/abc/logs?stdout=1&follow=0&tail=all HTTP/1.1", "", "", "/v1.45/containers/abc/logs?follow=0&stdout=1&tail=all"},
		{"image with slashes", "GET /images/a/b:1/json HTTP/1.1", "", "", "/v1.45/images/a/b:1/json"},
		{"remove", "DELETE /containers/abc?force=1 HTTP/1.1", "", "", "/v1.45/containers/abc?force=1"},
		{"create", "POST /v1.41/containers/create?name=web HTTP/1.1", json, "", "/v1.41/containers/create?name=web"},

		{"old version", "GET /v1.40/version HTTP/1.1", "", ReasonVersion, ""},
		{"future version", "GET /v1.99/version HTTP/1.1", "", ReasonVersion, ""},
		{"version twice", "GET /v1.41/v1.41/version HTTP/1.1", "", ReasonEndpoint, ""},
		{"version with a zero", "GET /v1.041/version HTTP/1.1", "", ReasonEndpoint, ""},
		{"no leading slash", "GET http://x/version HTTP/1.1", "", ReasonPath, ""},
		{"two slashes", "GET //version HTTP/1.1", "", ReasonPath, ""},
		{"up", "GET /v1.41/images/../containers/json HTTP/1.1", "", ReasonPath, ""},
		{"dot", "GET /./version HTTP/1.1", "", ReasonPath, ""},
		{"escaped", "GET /%76ersion HTTP/1.1", "", ReasonPath, ""},
		{"escaped slash", "GET /containers%2fjson HTTP/1.1", "", ReasonPath, ""},
		{"trailing slash", "GET /version/ HTTP/1.1", "", ReasonPath, ""},
		{"semicolon", "GET /version;x HTTP/1.1", "", ReasonPath, ""},
		{"backslash", `GET /images\json HTTP/1.1`, "", ReasonPath, ""},
		{"upper case", "GET /Version HTTP/1.1", "", ReasonEndpoint, ""},
		{"method", "POST /version HTTP/1.1", "Content-Length: 0\r\n", ReasonEndpoint, ""},
		{"method in small letters", "get /version HTTP/1.1", "", ReasonEndpoint, ""},
		{"HTTP/1.0", "GET /version HTTP/1.0", "", ReasonHTTPVersion, ""},
		{"parameter", "GET /version?x=1 HTTP/1.1", "", ReasonQuery, ""},
		{"parameter twice", "GET /containers/json?all=0&all=1 HTTP/1.1", "", ReasonQuery, ""},
		{"parameter's value", "GET /containers/json?all=yes HTTP/1.1", "", ReasonQuery, ""},
		{"broken parameters", "GET /containers/json?all=%zz HTTP/1.1", "", ReasonQuery, ""},
		{"platform", "POST /containers/create?platform=linux HTTP/1.1", json, ReasonQuery, ""},
		{"stamp", "GET /version HTTP/1.1", "X-Portcullis-Stamp: a\r\n", ReasonHeader, ""},
		{"override", "GET /version HTTP/1.1", "X-HTTP-Method-Override: DELETE\r\n", ReasonHeader, ""},
		{"encoding", "POST /containers/create HTTP/1.1", json + "Content-Encoding: gzip\r\n", ReasonHeader, ""},
		{"upgrade", "GET /version HTTP/1.1", "Connection: Upgrade\r\nUpgrade: h2c\r\n", ReasonUpgrade, ""},
		{"other upgrade at attach", "POST /containers/abc/attach HTTP/1.1", "Upgrade: websocket\r\nContent-Length: 0\r\n", ReasonUpgrade, ""},
		{"body where none is", "POST /containers/abc/start HTTP/1.1", json, ReasonLength, ""},
		{"chunked body where none is", "POST /containers/abc/start HTTP/1.1", "Transfer-Encoding: chunked\r\n", ReasonLength, ""},
		{"no body", "POST /containers/create HTTP/1.1", "Content-Type: application/json\r\nContent-Length: 0\r\n", ReasonLength, ""},
		{"chunked", "POST /containers/create HTTP/1.1", "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n", ReasonLength, ""},
		{"1 MiB and 1", "POST /containers/create HTTP/1.1", "Content-Type: application/json\r\nContent-Length: 1048577\r\n", ReasonLength, ""},
		{"charset", "POST /containers/create HTTP/1.1", "Content-Type: application/json; charset=utf-8\r\nContent-Length: 2\r\n", ReasonType, ""},
		{"no type", "POST /containers/create HTTP/1.1", "Content-Length: 2\r\n", ReasonType, ""},
		{"two types", "POST /containers/create HTTP/1.1", json + "Content-Type: text/plain\r\n", ReasonType, ""},
		{"load as JSON", "POST /images/load HTTP/1.1", json, ReasonType, ""},
	} {
		r := read(c.line + "\r\nHost: x\r\n" + c.headers + "\r\n")
		if r == nil {
			t.Errorf("%s: not even a request", c.name)
			continue
		}
		_, call, err := find(r, 45)
		reason := ""
		if err != nil {
			reason, _ = reasonOf(err)
		}
		if reason != c.reason {
			t.Errorf("%s: %v, want %q", c.name, err, c.reason)
		}
		if err == nil && call.uri() != c.uri {
			t.Errorf("%s: the engine would get %s, want %s", c.name, call.uri(), c.uri)
		}
	}
}

// Whatever a caller writes, the engine gets a line of the table, with one reading.
func FuzzFind(f *testing.F) {
	f.Add("GET /v1.41/containers/json?all=1 HTTP/1.1\r\nHost: x\r\n\r\n")
	f.Add("POST /v1.41/containers/create?name=a HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}")
	f.Add("GET //v1.50/../images/load HTTP/1.1\r\nHost: x\r\n\r\n")
	f.Fuzz(func(t *testing.T, text string) {
		r := read(text)
		if r == nil {
			return
		}
		e, c, err := find(r, 45)
		if err != nil {
			if reason, _ := reasonOf(err); reason == ReasonEngine {
				t.Errorf("%q: no reason: %v", text, err)
			}
			return
		}
		uri := c.uri()
		path, _, _ := strings.Cut(uri, "?")
		again := read(e.method + " " + uri + " HTTP/1.1\r\nHost: x\r\n\r\n")
		if !plainPath.MatchString(path) || again == nil || again.URL.Path != path || strings.ContainsAny(uri, "#\\% ") && !strings.Contains(uri, "%2B") {
			t.Errorf("%q becomes %q", text, uri)
		}
	})
}
