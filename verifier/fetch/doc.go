// Package fetch brings container images to the Pi: from files, sticks, web servers
// and registries. It judges nothing: whoever loads what it brings reads it through
// package image and asks for a permission. What it does see to is that a server,
// a cable or a stick cannot make it write more than it was told to expect, wait for
// ever, go elsewhere, or mix two files into one; and that what was begun goes on
// where it ended, also after a kill -9.
//
// cmd/portcullis uses it. It runs beside verifierd, not in it: the log's key and the
// engine's socket are not in the process that speaks to strangers.
package fetch

import (
	"errors"
	"fmt"
	"net/http"
	"time"
)

// Reasons why nothing was brought.
const (
	ReasonReference   = "source-reference"   // no address that is understood, or a registry without a digest
	ReasonUnreachable = "source-unreachable" // no connection, or it broke too often
	ReasonStatus      = "source-status"      // the server answers, but not with the file
	ReasonRedirect    = "source-redirect"    // the server points to where we do not go
	ReasonRange       = "source-range"       // the server answers for another part than was asked for, or in another coding
	ReasonChanged     = "source-changed"     // the file became another one, again and again
	ReasonSlow        = "source-slow"        // too few bytes for too long
	ReasonTooLarge    = "source-too-large"   // more bytes than were named, or than fit the limit
	ReasonDigest      = "source-digest"      // not what its digest says
	ReasonCredentials = "source-credentials" // needed and not there, refused, or asked for by somebody else
	ReasonStorage     = "source-storage"     // the quarantine cannot be used, or has no room
	ReasonBusy        = "source-busy"        // another import uses the quarantine
	ReasonNone        = "source-none"        // no image there
)

// Error is a refusal with its typed reason.
type Error struct {
	Reason string
	Detail string
	again  bool // another attempt may do it
}

func (e *Error) Error() string { return e.Reason + ": " + e.Detail }

func refuse(reason, format string, args ...any) error {
	return &Error{Reason: reason, Detail: fmt.Sprintf(format, args...)}
}

// passing is a refusal that another attempt may undo.
func passing(reason, format string, args ...any) error {
	return &Error{Reason: reason, Detail: fmt.Sprintf(format, args...), again: true}
}

// Reason returns the typed reason in err, "" where there is none.
func Reason(err error) string {
	var e *Error
	if errors.As(err, &e) {
		return e.Reason
	}
	return ""
}

// Progress is told how far something is, in bytes; total is -1 where nobody knows.
type Progress func(stage string, done, total int64)

// Options of a Fetcher. The zero value has the defaults.
type Options struct {
	MaxBytes  int64         // of one archive, or of all blobs of an image; 9 GiB
	Fruitless int           // attempts without one new byte before it is given up; 5
	Attempts  int           // all attempts for one file; 100
	Pause     time.Duration // before the second attempt; each later one waits twice as long, at most 30 s; 500 ms
	Window    time.Duration // within which MinBytes have to come; 30 s
	MinBytes  int64         // 64 KiB
	PlainHTTP bool          // registries without TLS
	Platform  string        // "linux/arm64"; "" = any, if there is only one
	Transport http.RoundTripper
	Progress  Progress

	Credentials Credentials
}

func (o Options) filled() Options {
	set := func(v *int64, to int64) {
		if *v == 0 {
			*v = to
		}
	}
	set(&o.MaxBytes, 9<<30)
	set((*int64)(&o.Pause), int64(500*time.Millisecond))
	set((*int64)(&o.Window), int64(30*time.Second))
	set(&o.MinBytes, 64<<10)
	if o.Fruitless == 0 {
		o.Fruitless = 5
	}
	if o.Attempts == 0 {
		o.Attempts = 100
	}
	if o.Progress == nil {
		o.Progress = func(string, int64, int64) {}
	}
	if o.Transport == nil {
		o.Transport = newTransport(nil)
	}
	return o
}
