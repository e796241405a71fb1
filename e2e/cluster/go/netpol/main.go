// Command netpol enforces NetworkPolicies on the only node of a test cluster, by nftables rules about what is forwarded
// to its pods: all of ingress, for IPv4. Egress is not enforced.
//
// A pod's address is known once the kubelet has told the API server, a moment after the pod began.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	v1 "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
)

const (
	gather = 20 * time.Millisecond // so long a change waits for others that come with it
	again  = time.Second           // after a failure
)

func main() {
	kubeconfig := flag.String("kubeconfig", "", "how to reach the API server")
	ready := flag.String("ready", "", "a file that is made once the policies found at the start are enforced")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := run(ctx, *kubeconfig, *ready); err != nil && !errors.Is(err, context.Canceled) {
		klog.Fatal(err)
	}
}

func run(ctx context.Context, kubeconfig, ready string) error {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	changed := make(chan struct{}, 1)
	now := watch(ctx, informers.NewSharedInformerFactory(client, 0), changed)
	for applied := ""; ; {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
		time.Sleep(gather)
		wanted := now().ruleset()
		if wanted == applied {
			continue
		}
		if err := load(ctx, wanted); err != nil {
			klog.Errorf("the rules of before stay in force: %v", err)
			time.AfterFunc(again, func() { notify(changed) })
			continue
		}
		if applied == "" {
			if err := os.WriteFile(ready, nil, 0o644); err != nil {
				return err
			}
		}
		applied = wanted
	}
}

// load hands a ruleset to nft(8), which applies all of it or nothing.
func load(ctx context.Context, ruleset string) error {
	command := exec.CommandContext(ctx, "nft", "--file", "-")
	command.Stdin = strings.NewReader(ruleset)
	if output, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("nft: %w: %s", err, output)
	}
	return nil
}

// watch returns what there is now, as a function, once everything has been read. Changes are told by the channel.
func watch(ctx context.Context, factory informers.SharedInformerFactory, changed chan<- struct{}) func() cluster {
	pods, namespaces := factory.Core().V1().Pods().Informer(), factory.Core().V1().Namespaces().Informer()
	policies := factory.Networking().V1().NetworkPolicies().Informer()
	for _, informer := range []cache.SharedIndexInformer{pods, namespaces, policies} {
		_, _ = informer.AddEventHandler(cache.ResourceEventHandlerFuncs{ // fails only when the informer has been stopped
			AddFunc:    func(any) { notify(changed) },
			UpdateFunc: func(any, any) { notify(changed) },
			DeleteFunc: func(any) { notify(changed) },
		})
	}
	factory.Start(ctx.Done())
	factory.WaitForCacheSync(ctx.Done())
	notify(changed) // also where there is nothing yet
	return func() cluster {
		found := cluster{namespaces: map[string]labels.Set{}}
		for _, item := range namespaces.GetStore().List() {
			found.namespaces[item.(*v1.Namespace).Name] = item.(*v1.Namespace).Labels
		}
		for _, item := range policies.GetStore().List() {
			found.policies = append(found.policies, item.(*networking.NetworkPolicy))
		}
		for _, item := range pods.GetStore().List() {
			if pod := item.(*v1.Pod); hasAddress(pod) {
				found.pods = append(found.pods, pod)
			}
		}
		slices.SortFunc(found.policies, func(a, b *networking.NetworkPolicy) int {
			return strings.Compare(string(a.UID), string(b.UID))
		})
		found.pods = oneEach(found.pods)
		return found
	}
}

// oneEach keeps the newest pod of each address, in the order of the addresses: nft refuses an address named twice.
func oneEach(pods []*v1.Pod) []*v1.Pod {
	slices.SortFunc(pods, func(a, b *v1.Pod) int {
		newestFirst := b.CreationTimestamp.Compare(a.CreationTimestamp.Time)
		return cmp.Or(strings.Compare(a.Status.PodIP, b.Status.PodIP), newestFirst)
	})
	return slices.CompactFunc(pods, func(a, b *v1.Pod) bool { return a.Status.PodIP == b.Status.PodIP })
}

// hasAddress: a pod that shares the node's address is none to policies, and an ended pod's may be another's by now.
func hasAddress(pod *v1.Pod) bool {
	ended := pod.Status.Phase == v1.PodSucceeded || pod.Status.Phase == v1.PodFailed
	return pod.Status.PodIP != "" && !pod.Spec.HostNetwork && !ended
}

func notify(changed chan<- struct{}) {
	select {
	case changed <- struct{}{}:
	default: // it is on its way already
	}
}
