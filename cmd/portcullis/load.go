package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"portcullis/images/update"
	"portcullis/internal/cli"
	"portcullis/internal/rpc"
	"portcullis/verifier/approval"
	"portcullis/verifier/fetch"
	"portcullis/verifier/image"
	"portcullis/verifier/record"
)

func init() { commands = append(commands, loadCommand()) }

func loadCommand() *cli.Command {
	c := &cli.Command{
		Name: "load", Args: "FILE|DIR|DEVICE|URL|REGISTRY/NAME@sha256:…",
		Summary: "Bring an approved container image into this Pi's Docker: from an archive, an OCI layout, a stick, a web server\n" +
			"or a registry. What no approval names is not fetched. What was begun goes on where it ended. Exit 1 when refused.",
		Example: "portcullis load /dev/sda1\nportcullis load https://files.example/hello-3.tar --digest sha256:…\n" +
			"portcullis load registry.example/team/hello@sha256:… --credentials /etc/portcullis/registries",
	}
	c.Run = func(ctx context.Context, stdio *cli.IO, args []string) error { return load(ctx, c, stdio, args) }
	return c
}

// loading is one run of the command.
type loading struct {
	source   string
	digest   string // of the manifest or configuration that is wanted; "" = what is approved
	platform string
	store    string
	guard    string // its socket
	reach    reach
	asJSON   bool

	approved []record.Named
	meter    *update.Meter
	stdio    *cli.IO
}

// reach is how images are fetched from other machines.
type reach struct {
	plain bool
	login string
	roots string
	mib   int64
}

func (r *reach) register(fs *flag.FlagSet) {
	fs.StringVar(&r.login, "credentials", "", "file of lines HOST NAME PASSWORD, for token servers with their REGISTRY behind it, mode 0600")
	fs.StringVar(&r.roots, "ca", "", "file of the authorities (PEM) that may vouch for the server, instead of the machine's")
	fs.BoolVar(&r.plain, "plain-http", false, "a registry without TLS: digests hold all the same, a password is seen by all")
	fs.Int64Var(&r.mib, "max-mib", 9<<10, "largest image that is fetched, in MiB")
}

func (r *reach) check() error {
	if r.mib < 1 || r.mib > 1<<20 {
		return cli.Usagef("--max-mib is from 1 to 1048576")
	}
	return nil
}

// loadReport is the --json shape, one for each image.
type loadReport struct {
	Source   string `json:"source"`
	Name     string `json:"name,omitempty"` // to run it by
	Manifest string `json:"manifest,omitempty"`
	Config   string `json:"config,omitempty"`
	Bytes    int64  `json:"bytes,omitempty"` // of the archive that the guard got
	Resumed  bool   `json:"resumed"`
	Loaded   bool   `json:"loaded"`
	Reason   string `json:"reason,omitempty"`
	Detail   string `json:"detail,omitempty"`
}

func load(ctx context.Context, c *cli.Command, stdio *cli.IO, args []string) error {
	fs := cli.NewFlags(c, stdio)
	runDir := fs.String("run-dir", "/run/portcullis", "where the services' sockets are")
	l := loading{stdio: stdio}
	fs.StringVar(&l.digest, "digest", "", "of the image's manifest or configuration, as its approval has it; needed for a URL")
	fs.StringVar(&l.platform, "platform", "", "of the image, for instance linux/arm64, where there are several")
	fs.StringVar(&l.store, "quarantine", filepath.Join(stateFlag, "quarantine"), "where it is kept until it is loaded; a plain disk is enough")
	l.reach.register(fs)
	fs.BoolVar(&l.asJSON, "json", false, "one JSON object for each image")
	words, err := cli.Parse(c, stdio, fs, args)
	if err != nil {
		return err
	}
	if len(words) != 1 {
		return cli.Usagef("load takes one source")
	}
	if err := l.reach.check(); err != nil {
		return err
	}
	if l.digest != "" && !approval.IsDigest(l.digest) {
		return cli.Usagef("--digest is sha256: and 64 hex digits")
	}
	l.source, l.guard = words[0], filepath.Join(*runDir, rpc.GuardSocket)
	l.meter = update.NewMeter(stdio.Err, stdio.Colour, time.Now)
	if err := verifierCall(ctx, *runDir, http.MethodGet, "/approvals/images", nil, &l.approved); err != nil {
		return fmt.Errorf("what is approved: %w", err)
	}
	err = l.run(ctx)
	l.meter.End()
	return err
}

func (l *loading) run(ctx context.Context) error {
	if !isRemote(l.source) {
		return l.local(ctx)
	}
	r, err := l.remote(ctx)
	var usage *cli.UsageError
	if errors.As(err, &usage) {
		return err
	}
	if err != nil {
		return l.tell(refused(r, err))
	}
	return l.tell(r)
}

func isRemote(source string) bool {
	return strings.Contains(source, "://") || strings.Contains(source, "@sha256:")
}

// remote fetches one image and hands it over. What a resumed one of a web server was
// put together from may be of two files: it is fetched once more.
func (l *loading) remote(ctx context.Context) (loadReport, error) {
	r := loadReport{Source: l.source}
	var get func(*fetch.Fetcher, *fetch.Quarantine) (*fetch.Image, error)
	if strings.Contains(l.source, "://") {
		r.Source, _, _ = strings.Cut(l.source, "?") // what may be secret
		if l.digest == "" {
			return r, cli.Usagef("load: --digest is needed for a URL: what is asked for has to be known before")
		}
		get = func(f *fetch.Fetcher, q *fetch.Quarantine) (*fetch.Image, error) { return f.URL(ctx, q, l.source) }
	} else {
		ref, err := fetch.ParseReference(l.source)
		if err != nil {
			return r, err
		}
		if l.digest != "" && l.digest != ref.Digest {
			return r, cli.Usagef("load: two digests")
		}
		l.digest = ref.Digest
		get = func(f *fetch.Fetcher, q *fetch.Quarantine) (*fetch.Image, error) { return f.Registry(ctx, q, ref) }
	}
	if err := l.known(func(i approval.Image) bool { return i.Manifest == l.digest || i.Config == l.digest }); err != nil {
		return r, err
	}
	f, err := l.reach.fetcher(l.platform, l.meter.Show)
	if err != nil {
		return r, err
	}
	q, err := fetch.OpenQuarantine(l.store)
	if err != nil {
		return r, err
	}
	defer q.Close()
	r, err = l.once(ctx, f, q, r, get)
	if r.Resumed && slices.Contains(mixed, loadReason(err)) {
		fmt.Fprintf(l.stdio.Err, "%s: what was resumed is not right (%s); once more from the beginning\n", r.Source, loadReason(err))
		r, err = l.once(ctx, f, q, r, get)
	}
	return r, err
}

// mixed are the reasons that two files in one give.
var mixed = []string{image.ReasonBlob, image.ReasonTar, image.ReasonFormat, image.ReasonConfig, image.ReasonMediaType, image.ReasonName}

func (l *loading) once(ctx context.Context, f *fetch.Fetcher, q *fetch.Quarantine, r loadReport, get func(*fetch.Fetcher, *fetch.Quarantine) (*fetch.Image, error)) (loadReport, error) {
	i, err := get(f, q)
	if err != nil {
		return r, err
	}
	defer i.Close()
	r, err = l.give(ctx, i, r)
	// A guard that could not be asked may be there the next time; what it has judged is done with.
	if r.Loaded || err != nil && loadReason(err) != fetch.ReasonUnreachable && ctx.Err() == nil {
		err = errors.Join(err, q.Clear())
	}
	return r, err
}

// local hands over every approved image that is found.
func (l *loading) local(ctx context.Context) error {
	found, done, err := fetch.Local(ctx, l.source, l.platform)
	if err != nil {
		return l.tell(refused(loadReport{Source: l.source}, err))
	}
	defer done()
	loaded := 0
	var failed error
	for _, f := range found {
		r, err := loadReport{Source: filepath.Join(l.source, f.Path)}, f.Err
		if len(found) == 1 {
			r.Source = l.source
		}
		if err == nil {
			r, err = l.give(ctx, f.Image, r)
		}
		if err != nil {
			r = refused(r, err)
		} else {
			loaded++
		}
		// Others on the stick that nobody approved are no fault of it.
		if terr := l.tell(r); terr != nil && (len(found) == 1 || r.Reason != approval.ReasonUnapproved) {
			failed = terr
		}
	}
	if loaded == 0 && failed == nil {
		failed = &cli.ExitError{Code: 1}
	}
	return failed
}

// give hands an image to the guard, if it says that it is an approved one.
func (l *loading) give(ctx context.Context, i *fetch.Image, r loadReport) (loadReport, error) {
	r.Manifest, r.Config, r.Bytes, r.Resumed = i.Manifest, i.Config, i.Size, i.Resumed
	if l.digest != "" && i.Manifest != l.digest && i.Config != l.digest {
		return r, &fetch.Error{Reason: fetch.ReasonDigest, Detail: fmt.Sprintf("manifest %s, configuration %s; %s was asked for", i.Manifest, i.Config, l.digest)}
	}
	if err := l.known(i.Is); err != nil {
		return r, err
	}
	name, err := fetch.Hand(ctx, l.guard, i, l.meter.Show)
	r.Name, r.Loaded = name, err == nil
	return r, err
}

// known is nil when an approval that would be believed names such an image. It saves
// the way; who decides is the guard.
func (l *loading) known(is func(approval.Image) bool) error {
	var no error = &approval.Error{Reason: approval.ReasonUnapproved, Detail: "no approval names it"}
	for _, a := range l.approved {
		if !is(a.Image) {
			continue
		}
		if a.Reason == "" {
			return nil
		}
		no = &approval.Error{Reason: a.Reason, Detail: strings.TrimPrefix(a.Detail, a.Reason+": ")}
	}
	return no
}

func (r *reach) fetcher(platform string, progress fetch.Progress) (*fetch.Fetcher, error) {
	o := fetch.Options{MaxBytes: r.mib << 20, PlainHTTP: r.plain, Platform: platform, Progress: progress}
	var err error
	if r.login != "" {
		if o.Credentials, err = fetch.LoadCredentials(r.login); err != nil {
			return nil, err
		}
	}
	if r.roots != "" {
		pem, err := readSmall(r.roots)
		if err != nil {
			return nil, err
		}
		if o.Transport, err = fetch.TransportFor(pem); err != nil {
			return nil, err
		}
	}
	return fetch.New(o), nil
}

func loadReason(err error) string {
	return cmp.Or(fetch.Reason(err), image.Reason(err), approval.Reason(err))
}

func refused(r loadReport, err error) loadReport {
	r.Reason, r.Detail = loadReason(err), err.Error()
	return r
}

// tell prints a report and is an error when it is a refusal.
func (l *loading) tell(r loadReport) error {
	l.meter.End()
	var err error
	switch {
	case l.asJSON:
		err = json.NewEncoder(l.stdio.Out).Encode(r)
	case r.Loaded:
		_, err = fmt.Fprintf(l.stdio.Out, "%s: loaded as %s, %d MB\n", record.Plain(r.Source, 200), record.Plain(r.Name, 200), (r.Bytes+1<<20-1)>>20)
	default:
		_, err = fmt.Fprintf(l.stdio.Out, "%s: refused: %s\n", record.Plain(r.Source, 200), record.Plain(r.Detail, 400))
	}
	if err == nil && !r.Loaded {
		err = &cli.ExitError{Code: 1}
	}
	return err
}
