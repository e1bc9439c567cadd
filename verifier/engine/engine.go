// Package engine is the one small door to Docker's engine: what the verifier asks
// of it, in the verifier's words. No other package knows the client's types.
// Every request carries a stamp of package stamp, which the engine's authorization
// plugin asks for. Package guard and the lab use it.
//
// The client is github.com/docker/docker's, the last release of that path; it
// agrees with the engine on the version of the API, 1.41 (Debian 12) or later.
package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/events"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/image"
	"github.com/docker/docker/client"

	"portcullis/verifier/stamp"
)

// ErrNotFound is returned where the engine has no such image or container.
var ErrNotFound = errors.New("engine: not found")

// maxBody is the largest JSON body that is sent: engines before 29.3.1 hide larger
// ones than 1 MiB from the plugin.
const maxBody = 512 << 10

// Client talks to one engine.
type Client struct {
	socket string
	http   *http.Client
	api    *client.Client
	wait   time.Duration
}

// New returns a client of the engine at socket. It connects when it is used.
func New(socket string, press *stamp.Press) (*Client, error) {
	t := &transport{press: press, base: &http.Transport{
		// Nothing is tried twice behind our back: a stamp is good once.
		DisableKeepAlives: true,
		WriteBufferSize:   64 << 10, // images
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		},
	}}
	h := &http.Client{Transport: t, CheckRedirect: client.CheckRedirect}
	// The client puts a layer of its own around what it is given.
	api, err := client.NewClientWithOpts(client.WithHost("unix://"+socket), client.WithHTTPClient(&http.Client{Transport: t, CheckRedirect: client.CheckRedirect}),
		client.WithAPIVersionNegotiation())
	if err != nil {
		return nil, fmt.Errorf("engine: %w", err)
	}
	return &Client{socket: socket, http: h, api: api, wait: wait}, nil
}

// transport stamps each request before it goes out.
type transport struct {
	press *stamp.Press
	base  http.RoundTripper
}

func (t *transport) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	body := stamp.NoBody()
	switch {
	case r.Body == nil || r.Body == http.NoBody:
		r.Body = nil
	case strings.HasPrefix(r.Header.Get("Content-Type"), "application/json"):
		b, err := io.ReadAll(io.LimitReader(r.Body, maxBody+1))
		r.Body.Close()
		if err != nil {
			return nil, err
		}
		if len(b) > maxBody {
			return nil, fmt.Errorf("engine: a body of more than %d bytes", maxBody)
		}
		body = stamp.Bytes(b)
		// The length is always told: plugins get no body of unknown length.
		r.Body, r.ContentLength, r.GetBody = io.NopCloser(bytes.NewReader(b)), int64(len(b)), nil
	default:
		body = stamp.Stream()
	}
	s, err := t.press.Make(r.Method, r.URL.RequestURI(), body)
	if err != nil {
		return nil, err
	}
	r.Header.Set(stamp.Header, s)
	return t.base.RoundTrip(r)
}

// Forward sends a request whose method, URI and body the guard has put together.
// body is JSON, or nil. The caller closes the answer's body.
func (c *Client) Forward(ctx context.Context, method, uri string, body []byte) (*http.Response, error) {
	r, err := http.NewRequestWithContext(ctx, method, "http://engine"+uri, nil)
	if err != nil {
		return nil, fmt.Errorf("engine: %w", err)
	}
	if body != nil {
		r.Header.Set("Content-Type", "application/json")
		r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	}
	return c.http.Do(r)
}

// Attach opens the output of a container, as the uri of an attach asks for it. What
// is read is the engine's stream; its form is in the content type. Nothing is written.
func (c *Client) Attach(ctx context.Context, uri string) (io.ReadCloser, string, error) {
	r, err := http.NewRequestWithContext(ctx, "POST", "http://engine"+uri, nil)
	if err != nil {
		return nil, "", fmt.Errorf("engine: %w", err)
	}
	r.Header.Set("Connection", "Upgrade")
	r.Header.Set("Upgrade", "tcp")
	a, err := c.http.Do(r)
	if err != nil {
		return nil, "", wrap("attach", err)
	}
	if a.StatusCode != http.StatusSwitchingProtocols {
		a.Body.Close()
		return nil, "", fmt.Errorf("engine: attach: %s", a.Status)
	}
	return a.Body, a.Header.Get("Content-Type"), nil
}

// Image is an image in the engine's store.
type Image struct {
	ID         string   // what the store calls it
	Layers     []string // diffIDs
	Tags       []string
	Env        []string // of its configuration
	Entrypoint []string
	Command    []string
	Volumes    bool // it declares some
}

// Image looks ref up: an ID, a name or a name with a tag.
func (c *Client) Image(ctx context.Context, ref string) (Image, error) {
	ctx, cancel := c.within(ctx)
	defer cancel()
	i, err := c.api.ImageInspect(ctx, ref)
	if err != nil {
		return Image{}, wrap("image", err)
	}
	out := Image{ID: i.ID, Layers: i.RootFS.Layers, Tags: i.RepoTags}
	if i.Config != nil {
		out.Env, out.Entrypoint, out.Command, out.Volumes = i.Config.Env, i.Config.Entrypoint, i.Config.Cmd, len(i.Config.Volumes) > 0
	}
	return out, nil
}

// Images lists the IDs of all images, also of those without a name.
func (c *Client) Images(ctx context.Context) ([]string, error) {
	ctx, cancel := c.within(ctx)
	defer cancel()
	list, err := c.api.ImageList(ctx, image.ListOptions{All: true})
	if err != nil {
		return nil, wrap("images", err)
	}
	var out []string
	for _, i := range list {
		out = append(out, i.ID)
	}
	return out, nil
}

// Load hands a docker save tar to the engine.
func (c *Client) Load(ctx context.Context, tar io.Reader) error {
	r, err := c.api.ImageLoad(ctx, tar)
	if err != nil {
		return wrap("load", err)
	}
	defer r.Body.Close()
	// The answer is 200 also where loading failed in the middle; the inspection afterwards tells.
	if _, err := io.Copy(io.Discard, io.LimitReader(r.Body, 1<<20)); err != nil {
		return wrap("load", err)
	}
	return nil
}

// RemoveImage removes an image with its names, and containers' ties to it.
func (c *Client) RemoveImage(ctx context.Context, id string) error {
	ctx, cancel := c.within(ctx)
	defer cancel()
	_, err := c.api.ImageRemove(ctx, id, image.RemoveOptions{Force: true})
	return wrap("remove image", err)
}

// Tag gives the image id a name.
func (c *Client) Tag(ctx context.Context, id, name string) error {
	ctx, cancel := c.within(ctx)
	defer cancel()
	return wrap("tag", c.api.ImageTag(ctx, id, name))
}

// Container is one of a list.
type Container struct {
	ID    string
	Image string // ID
	State string // created, running, paused, restarting, exited, dead
}

// Containers lists all containers, running or not.
func (c *Client) Containers(ctx context.Context) ([]Container, error) {
	ctx, cancel := c.within(ctx)
	defer cancel()
	list, err := c.api.ContainerList(ctx, container.ListOptions{All: true})
	if err != nil {
		return nil, wrap("containers", err)
	}
	var out []Container
	for _, x := range list {
		out = append(out, Container{ID: x.ID, Image: x.ImageID, State: string(x.State)})
	}
	return out, nil
}

// Resolve returns the full ID of the container that ref names.
func (c *Client) Resolve(ctx context.Context, ref string) (string, error) {
	ctx, cancel := c.within(ctx)
	defer cancel()
	i, err := c.api.ContainerInspect(ctx, ref)
	if err != nil {
		return "", wrap("container", err)
	}
	return i.ID, nil
}

// ImageOf returns the ID of the image that a container was made of.
func (c *Client) ImageOf(ctx context.Context, id string) (string, error) {
	ctx, cancel := c.within(ctx)
	defer cancel()
	i, err := c.api.ContainerInspect(ctx, id)
	if err != nil {
		return "", wrap("container", err)
	}
	if i.ContainerJSONBase == nil {
		return "", errors.New("engine: container: no answer")
	}
	return i.Image, nil
}

// Start starts a container.
func (c *Client) Start(ctx context.Context, id string) error {
	ctx, cancel := c.within(ctx)
	defer cancel()
	return wrap("start", c.api.ContainerStart(ctx, id, container.StartOptions{}))
}

// Pause freezes a container.
func (c *Client) Pause(ctx context.Context, id string) error {
	ctx, cancel := c.within(ctx)
	defer cancel()
	return wrap("pause", c.api.ContainerPause(ctx, id))
}

// Kill ends a container at once.
func (c *Client) Kill(ctx context.Context, id string) error {
	ctx, cancel := c.within(ctx)
	defer cancel()
	return wrap("kill", c.api.ContainerKill(ctx, id, "KILL"))
}

// Remove removes a container, running or not, with the volumes it made.
func (c *Client) Remove(ctx context.Context, id string) error {
	ctx, cancel := c.within(ctx)
	defer cancel()
	return wrap("remove", c.api.ContainerRemove(ctx, id, container.RemoveOptions{Force: true, RemoveVolumes: true}))
}

// Watch calls each for every container that the engine starts, changes or runs a
// program in, and every image that appears, until the stream ends. ready is called
// when the stream is open.
func (c *Client) Watch(ctx context.Context, ready func(), each func(kind, action, id string)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if err := c.ping(ctx); err != nil {
		return err
	}
	messages, errs := c.api.Events(ctx, events.ListOptions{Filters: filters.NewArgs(filters.Arg("type", "container"), filters.Arg("type", "image"))})
	ready()
	for {
		select {
		case m := <-messages:
			each(string(m.Type), string(m.Action), m.Actor.ID)
		case err := <-errs:
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return wrap("events", err)
		}
	}
}

// wait is how long the engine may take for one step that is neither a transfer nor made for waiting.
const wait = 3 * time.Minute

// within bounds one step: who asks an engine that hangs may hold up everybody else.
func (c *Client) within(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, c.wait)
}

// ping tells whether the engine answers the verifier.
func (c *Client) ping(ctx context.Context) error {
	ctx, cancel := c.within(ctx)
	defer cancel()
	_, err := c.api.Ping(ctx)
	return wrap("ping", err)
}

func wrap(what string, err error) error {
	switch {
	case err == nil:
		return nil
	case errdefs.IsNotFound(err):
		return fmt.Errorf("%w: %s: %v", ErrNotFound, what, err)
	}
	return fmt.Errorf("engine: %s: %w", what, err)
}
