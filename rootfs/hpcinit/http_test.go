package hpcinit

import (
	"bufio"
	"strings"
	"testing"

	"portcullis/rootfs/boot"
)

// judgeText runs an answer's head through the client.
func judgeText(text string, from, to int64) (*answer, error) {
	head, err := readHead(bufio.NewReaderSize(strings.NewReader(text), maxHead))
	if err != nil {
		return nil, err
	}
	a := new(answer)
	return a, a.judge(head, from, to)
}

func TestAnswers(t *testing.T) {
	const all, part = int64(0), int64(200)
	for name, c := range map[string]struct {
		head     string
		from, to int64
		size     int64
		total    int64
		reason   boot.Reason // "" = accepted
		again    bool        // trying again makes sense
	}{
		"whole file":            {"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n", 0, all, 7, 7, "", false},
		"line ends of Unix":     {"HTTP/1.0 200 OK\nContent-Length:7\n\n", 0, all, 7, 7, "", false},
		"range":                 {"HTTP/1.1 206 Partial Content\r\ncontent-length: 100\r\ncontent-range: bytes 100-199/500\r\n\r\n", 100, part, 100, 500, "", false},
		"whole for a range":     {"HTTP/1.1 200 OK\r\nContent-Length: 200\r\n\r\n", 0, part, 200, 200, "", false},
		"whole for a late one":  {"HTTP/1.1 200 OK\r\nContent-Length: 200\r\n\r\n", 100, part, 0, 0, ReasonHTTP, false},
		"other range":           {"HTTP/1.1 206 P\r\nContent-Length: 100\r\nContent-Range: bytes 0-99/500\r\n\r\n", 100, part, 0, 0, ReasonSize, false},
		"range without its end": {"HTTP/1.1 206 P\r\nContent-Length: 99\r\nContent-Range: bytes 100-199/500\r\n\r\n", 100, part, 0, 0, ReasonSize, false},
		"range of unknown":      {"HTTP/1.1 206 P\r\nContent-Length: 100\r\nContent-Range: bytes 100-199/*\r\n\r\n", 100, part, 0, 0, ReasonHTTP, false},
		"range not asked for":   {"HTTP/1.1 206 P\r\nContent-Length: 7\r\nContent-Range: bytes 0-6/7\r\n\r\n", 0, all, 0, 0, ReasonHTTP, false},
		"not found":             {"HTTP/1.1 404 Not Found\r\n\r\n", 0, all, 0, 0, ReasonRefused, false},
		"gone":                  {"HTTP/1.1 410 Gone\r\n\r\n", 0, all, 0, 0, ReasonRefused, false},
		"too many requests":     {"HTTP/1.1 429 Slow down\r\n\r\n", 0, all, 0, 0, ReasonRefused, true},
		"unavailable":           {"HTTP/1.1 503 Starting\r\n\r\n", 0, all, 0, 0, ReasonRefused, true},
		"redirect":              {"HTTP/1.1 302 Found\r\nLocation: http://192.0.2.1/\r\n\r\n", 0, all, 0, 0, ReasonHTTP, false},
		"no length":             {"HTTP/1.1 200 OK\r\n\r\n", 0, all, 0, 0, ReasonHTTP, false},
		"negative length":       {"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", 0, all, 0, 0, ReasonHTTP, false},
		"length with a sign":    {"HTTP/1.1 200 OK\r\nContent-Length: +7\r\n\r\n", 0, all, 0, 0, ReasonHTTP, false},
		"length over 63 bits":   {"HTTP/1.1 200 OK\r\nContent-Length: 9223372036854775808\r\n\r\n", 0, all, 0, 0, ReasonHTTP, false},
		"two lengths":           {"HTTP/1.1 200 OK\r\nContent-Length: 7\r\nContent-Length: 8\r\n\r\n", 0, all, 0, 0, ReasonHTTP, false},
		"chunked":               {"HTTP/1.1 200 OK\r\nContent-Length: 7\r\nTransfer-Encoding: chunked\r\n\r\n", 0, all, 0, 0, ReasonHTTP, false},
		"compressed":            {"HTTP/1.1 200 OK\r\nContent-Length: 7\r\nContent-Encoding: gzip\r\n\r\n", 0, all, 0, 0, ReasonHTTP, false},
		"folded line":           {"HTTP/1.1 200 OK\r\nContent-Length:\r\n 7\r\n\r\n", 0, all, 0, 0, ReasonHTTP, false},
		"space before colon":    {"HTTP/1.1 200 OK\r\nContent-Length : 7\r\n\r\n", 0, all, 0, 0, ReasonHTTP, false},
		"HTTP/2":                {"HTTP/2 200 OK\r\nContent-Length: 7\r\n\r\n", 0, all, 0, 0, ReasonHTTP, false},
		"no HTTP":               {"SSH-2.0-x\r\n\r\n", 0, all, 0, 0, ReasonHTTP, false},
		"empty head":            {"\r\n", 0, all, 0, 0, ReasonHTTP, false},
		"cut head":              {"HTTP/1.1 200 OK\r\nContent-Le", 0, all, 0, 0, boot.ReasonUnknown, true},
		"nothing":               {"", 0, all, 0, 0, boot.ReasonUnknown, true},
		"endless line":          {strings.Repeat("a", 2*maxHead), 0, all, 0, 0, ReasonHTTP, false},
		"endless head":          {"HTTP/1.1 200 OK\r\n" + strings.Repeat("a: b\r\n", maxHead), 0, all, 0, 0, ReasonHTTP, false},
	} {
		a, err := judgeText(c.head, c.from, c.to)
		if c.reason == "" {
			if err != nil || a.size != c.size || a.total != c.total {
				t.Errorf("%s: %+v, %v", name, a, err)
			}
			continue
		}
		if err == nil || boot.ReasonOf(err) != c.reason || isTemporary(err) != c.again {
			t.Errorf("%s: %v (temporary %v), want %s", name, err, isTemporary(err), c.reason)
		}
	}
}

func FuzzAnswer(f *testing.F) {
	f.Add("HTTP/1.1 206 P\r\nContent-Length: 100\r\nContent-Range: bytes 100-199/500\r\n\r\n", int64(100), int64(200))
	f.Add("HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nbody", int64(0), int64(0))
	f.Fuzz(func(t *testing.T, text string, from, to int64) {
		if from < 0 || from > 0 && from >= to || to < 0 { // nobody asks so
			return
		}
		a, err := judgeText(text, from, to)
		if err == nil && (a.size < 0 || a.total < 0 || (from > 0 && a.size != to-from)) {
			t.Fatalf("%+v for bytes %d to %d", a, from, to)
		}
	})
}
